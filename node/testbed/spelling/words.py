"""Tables of words, by the number that each stands for."""


def words(line: str) -> list[str]:
    """The words of a line; a dash stands where there is none."""
    return line.split()
