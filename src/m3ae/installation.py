"""The one trap of the installation, named before anything else fails on it."""

from importlib import metadata


def check_installation() -> None:
    """Raise ValueError when torch and torchvision are not of one build.

    A torchvision that was made for another torch build fails at import with an error that names
    neither, and pip lets the pair through.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        versions = {name: metadata.version(name) for name in ("torch", "torchvision")}
        pair = ", ".join(f"{name} {version}" for name, version in versions.items())
        raise ValueError(
            f"{pair} do not fit together ({error}); install the pair in requirements.txt: "
            "pip install -r requirements.txt"
        ) from error
