"""What the demo's model reads: plain English of several kinds and lengths."""

SENTENCES = (
    "The harbour was quiet, and only one ferry left before noon.",
    "She compared the two offers for a week and then took neither.",
    "Fresh basil keeps for days if its stems stand in a glass of water.",
    "The committee postponed the vote because three of its members were ill.",
    "A prime number has exactly two divisors: one and itself.",
    "How do I change the tyre of a bicycle without special tools?",
    "Rain is expected in the north tonight, with strong winds along the coast.",
    "The new bridge carries twice the traffic of the old one.",
    "He plays the cello well, but he has never performed in front of an audience.",
    "Interest rates rose again last month, and house prices began to fall.",
    "Most of the museum's paintings were moved to the countryside during the war.",
    "Please send the signed contract to the office by Friday.",
)
