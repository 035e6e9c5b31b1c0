"""The same runs on Ray: a pool of Refiners, one for each GPU or for so many cores, on one machine or many."""
