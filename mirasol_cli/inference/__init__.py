"""A loaded model that answers: decoding, one video at a time (`ask`), and what an answer rests on."""
