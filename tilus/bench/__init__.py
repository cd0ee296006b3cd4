"""`tilus bench`: the library's product against other systems' on a GPU, or its prediction where there is none."""
