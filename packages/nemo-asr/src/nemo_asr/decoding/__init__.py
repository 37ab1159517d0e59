"""From a network's output to text: greedy CTC search, timestamps, forced alignment."""
