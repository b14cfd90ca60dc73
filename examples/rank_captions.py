"""Which of these captions fits a picture best, and which of these pictures a caption.

    python examples/rank_captions.py --model runs/quickstart --images a.png b.png \\
        --captions "a CT of the chest" "an X-ray of the hand"

By the ITM head of a pre-trained model, or a model fine-tuned for retrieval. Scores are log-odds of
this model; only their order says something.
"""

import argparse
from collections.abc import Sequence

from m3ae.predictor import Predictor


def main(argv: Sequence[str] | None = None) -> None:
    """Print captions for each image, then images for each caption, the best first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a run, a folder or a hub id")
    parser.add_argument("--images", required=True, nargs="+")
    parser.add_argument("--captions", required=True, nargs="+")
    args = parser.parse_args(argv)

    predictor = Predictor.from_pretrained(args.model)
    for image in args.images:
        print(image)
        for found in predictor.rank_captions(image, args.captions):
            print(f"    {found['score']:+8.3f}  {found['text']}")
    for caption in args.captions:
        print(caption)
        for found in predictor.rank_images(caption, args.images):
            print(f"    {found['score']:+8.3f}  {args.images[found['number']]}")


if __name__ == "__main__":
    main()
