"""Lines Matching against a discriminator: the loss, the game, the discriminator, DiffAugment."""
