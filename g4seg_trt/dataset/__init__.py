"""Runs over whole data sets: pairing images with masks, one run per output folder, records, going on after any end."""
