"""The miniature model: synthetic scenes, training, tokenizer. Importing this package loads no torch."""
