"""Numbers in words, 0 to 9999, in the languages of the test bed and in some that it does not serve."""
