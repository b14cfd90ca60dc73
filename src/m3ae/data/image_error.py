"""What is wrong with an image, in words that can be counted."""


class ImageError(ValueError):
    """An image that cannot be used; `reason` is one of a few short phrases, for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
