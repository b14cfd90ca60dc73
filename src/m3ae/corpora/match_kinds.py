"""How the audit matches images: its kinds and defaults, for its --help, which needs no torch."""

KINDS = ("bytes", "id", "image", "text", "near-text", "id-window")  # the surest first
MOST_MATCHES = 50  # of an image by a kind: copies of one file match all others
MEDPIX = r"synpic(\d{1,9})"  # names of MedPix's pictures, also within those of MedPix 2.0
THRESHOLD = 0.9  # score of near-duplicates; docs/results/audit.md
