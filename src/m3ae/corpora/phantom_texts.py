"""Facts of a phantom, and the captions, references, questions and answers that state them.

Phantoms are generated: no text describes a person. A fact has exactly one word, and a word belongs
to exactly one fact: a synonym would cap the accuracy on masked words.
"""

import numpy as np

LAYOUTS = ("roco", "medicat", "vqa_rad", "tables")
BY_DEFAULT = LAYOUTS[:3]
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "modality": ("ct", "mr", "radiograph", "ultrasound"),
    "plane": ("axial", "coronal", "sagittal"),
    "region": ("head", "chest", "abdomen", "pelvis", "knee"),
    "kind": ("nodule", "cyst", "calcification", "consolidation"),
    "side": ("left", "right"),
    "level": ("upper", "middle", "lower"),
    "size": ("small", "large"),
    "number": ("single", "paired"),
    "presence": ("normal",),  # said only where there is no finding
    "sex": ("woman", "man"),
    "age": tuple(str(age) for age in range(20, 90)),
}
COARSE = ("modality", "plane", "region")
FINE = ("kind", "side", "level", "size", "number")
TEXT_ONLY = ("sex", "age")
PRESENT = 0.8  # fraction of images with a finding

Facts = dict[str, str]

# The facts keep one order, the words between them vary: a small model then soon reads which fact
# a masked word held, and is left with the question that matters, what the image says about it.
HEADS = (
    "Phantom {modality}, {plane} {region}",
    "This phantom {modality}, {plane}, {region}",
    "A phantom {modality} with {plane} {region}",
    "The phantom {modality}: {plane} {region}",
    "Phantom by {modality}, {plane} {region}",
    "Phantom {modality}, {plane} view, {region}",
    "One phantom {modality} of {plane} {region}",
)
FINDINGS = (
    "with a {number} {size} {kind} at {level} {side}",
    "showing {number} {size} {kind}, {level} {side}",
    "and {number} {size} {kind} on {level} {side}",
    "has some {number} {size} {kind}, {level} {side}",
    "where {number} {size} {kind} lies {level} {side}",
    "plus the {number} {size} {kind} to {level} {side}",
    "containing {number} {size} {kind} in {level} {side}",
)
NORMALS = (
    "which looks normal",
    "that is normal",
    "with a normal appearance",
    "and it was judged to be normal",
    "reported as normal",
    "where all is normal",
)
PATIENTS = {
    ("sex", "age"): ("in {sex} aged {age}", "of a {sex}, {age}", "for {sex} at {age}"),
    ("sex",): ("in a {sex}", "of one {sex}", "for {sex}"),
    ("age",): ("aged {age}", "at age {age}", "at {age} years"),
    (): ("",),
}
REFERENCES = (
    "In Figure {figure}, the phantom {region} was imaged by {modality} along its {plane} plane",
    "We made {plane} images of this phantom {region} by means of {modality} (Figure {figure})",
    "Figure {figure} was taken from the phantom {region}: it is {modality}, and it is {plane}",
)
REFERENCE_FINDINGS = (
    ", and there was {number} {size} {kind} found towards the {level} {side} part.",
    "; the {number} {size} {kind} occupies the {level} {side} area.",
    ". Note its {number} {size} {kind} near the {level} {side} border.",
)
REFERENCE_NORMALS = (", and this was normal.", "; we consider it normal.", ". Nothing but normal.")


def generator(seed: int, layout: str, index: int, stream: int) -> np.random.Generator:
    """Return the generator of one purpose (`stream`) of image `index` (from 0) of a layout."""
    return np.random.default_rng([seed, LAYOUTS.index(layout), index, stream])


def draw_facts(rng: np.random.Generator) -> Facts:
    """Draw independent, uniform facts; those of FINE are absent where there is no finding."""
    facts = {name: words[rng.integers(len(words))] for name, words in ATTRIBUTES.items()}
    absent = ("presence",) if rng.random() < PRESENT else FINE
    return {name: word for name, word in facts.items() if name not in absent}


def fill(template: str, facts: Facts, **extra: str) -> str:
    """Fill a template; a fact that is not in `facts` leaves no trace."""
    slots = dict.fromkeys(ATTRIBUTES, "") | facts | extra
    return " ".join(template.format(**slots).split()).replace(" ,", ",")


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """Return one of the choices."""
    return choices[rng.integers(len(choices))]


def state(facts: Facts, rng: np.random.Generator) -> Facts:
    """Choose which facts a text states: the others are for the image alone to tell."""
    # Of each pair (number, size) and (level, side) only the first is left out, so that no sentence
    # is hollow and a masked word that stands alone can only be the second.
    chances = {"number": 0.2, "level": 0.2, "sex": 0.3, "age": 0.3}
    dropped = {name for name, chance in chances.items() if rng.random() < chance}
    return {name: word for name, word in facts.items() if name not in dropped}


def write_caption(facts: Facts, rng: np.random.Generator) -> tuple[str, Facts]:
    """Return a caption of 9 to 16 words and the facts that it states."""
    while True:  # a length outside the range is drawn again: about every third
        stated = state(facts, rng)
        patient = tuple(name for name in TEXT_ONLY if name in stated)
        ending = pick(rng, FINDINGS if "kind" in facts else NORMALS)
        parts = (pick(rng, HEADS), ending, pick(rng, PATIENTS[patient]))
        caption = fill(" ".join(parts), stated) + "."
        if 9 <= len(caption.split()) <= 16:
            return caption, stated


def write_reference(stated: Facts, rng: np.random.Generator, figure: int) -> str:
    """Say the stated facts again in other words, as a sentence of an article would."""
    patient = tuple(name for name in TEXT_ONLY if name in stated)
    ending = pick(rng, REFERENCE_FINDINGS if "kind" in stated else REFERENCE_NORMALS)
    patient_words = " " + pick(rng, PATIENTS[patient]) if patient else ""
    return fill(pick(rng, REFERENCES) + patient_words + ending, stated, figure=str(figure))


# Of each fact: VQA-RAD's question type, a question and its re-phrasing; answered by the word.
OPEN = {
    "modality": ("MODALITY", "What modality made this phantom image?", "How was this image taken?"),
    "plane": ("PLANE", "In what plane is this image?", "How is this slice oriented?"),
    "region": (
        "ORGAN",
        "Which region of the body is shown?",
        "What part of the phantom do we see?",
    ),
    "kind": ("ABN", "What kind of finding is seen?", "What is the lesion?"),
    "side": ("POS", "On which side is the finding?", "Which half of the image holds the lesion?"),
    "level": ("POS", "At what level is the finding?", "How high does the lesion lie?"),
    "size": ("SIZE", "What is the size of the lesion?", "How big is the finding?"),
    "number": ("COUNT", "Is the finding single or paired?", "What is the number of lesions?"),
    "place": ("POS", "Where is the finding?", "Where does the lesion lie?"),
}
FRAMES = {name: f"What is the {name}?" for name in COARSE}
FRAMES |= {n: f"What is the {n} of the finding?" for n in ("side", "level", "size", "place")}
FRAMES |= {"kind": "What is the finding?", "number": "What is the count of the finding?"}
# The same with a frame, where {} is the value asked for; answered by yes or no.
CLOSED = {
    "modality": ("MODALITY", "Was {} used here?", "Is this image made by {}?", "Is it {}?"),
    "plane": ("PLANE", "Is the plane {}?", "Is this a slice that is {}?", "Is it {}?"),
    "region": ("ORGAN", "Is the {} shown?", "Do we see the {}?", "Is it the {}?"),
    "kind": ("PRES", "Is there a {}?", "Does the image show a {}?", "Is/Are there {}?"),
    "side": ("POS", "Is the finding on the {}?", "Does the lesion lie {}?", "Is the side {}?"),
    "level": ("POS", "Is the finding in the {} part?", "Is the lesion {}?", "Is the level {}?"),
    "size": ("SIZE", "Is the finding {}?", "Is this a {} lesion?", "Is the size {}?"),
    "number": ("COUNT", "Is the lesion {}?", "Is the finding {} here?", "Is the count {}?"),
    "presence": ("ABN", "Is this image {}?", "Does it look {}?", "Is/Are the image {}?"),
}


def ask(facts: Facts, rng: np.random.Generator) -> list[dict]:
    """Return five questions on an image: question, para, frame, question_type, answer, ..."""
    known = dict(facts)
    if "kind" in facts:
        known["place"] = f"{facts['level']} {facts['side']}"
    pool = [("OPEN", name) for name in OPEN if name in known]
    # Only "is it there" may be asked of a finding that is not there.
    pool += [("CLOSED", n) for n in CLOSED if n in known or n in ("kind", "presence")]
    asked = []
    for choice in rng.permutation(len(pool))[:5]:
        answer_type, name = pool[choice]
        if answer_type == "OPEN":
            question_type, *wordings = (*OPEN[name], FRAMES[name])
            answer = known[name]
        else:
            words = ATTRIBUTES[name]
            # Half of the answers are yes; a kind makes up for images that have no finding.
            if name in known and rng.random() < (0.7 if name == "kind" else 0.5):
                words = (known[name],)
            others = tuple(word for word in words if word != known.get(name)) or words
            value = pick(rng, others)
            answer = "Yes" if value == known.get(name) else "No"
            question_type, *wordings = (text.format(value) for text in CLOSED[name])
        question, para, frame = wordings
        item = {"question": question, "para": para, "frame": frame, "question_type": question_type}
        asked.append({**item, "answer": answer, "answer_type": answer_type})
    return asked
