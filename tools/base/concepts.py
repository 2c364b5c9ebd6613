"""What the embedded base can draw: its concepts by class, the colours it knows, and what is kept from it.

A concept is (the name used in captions, the Unicode name of its emoji). The name is what a person would type.
`HELD_OUT` never reaches any training stage: its members are the subjects people teach to the base later, and
`examples/subjects` and `benchmarks/` are made of them.
"""

# class word -> {name in captions: Unicode name}
CONCEPTS: dict[str, dict[str, str]] = {
    "dog": {"dog face": "dog face", "poodle": "poodle"},
    "cat": {"cat face": "cat face", "black cat": "black cat"},
    "rabbit": {"rabbit face": "rabbit face"},
    "rodent": {"mouse face": "mouse face", "hamster": "hamster"},
    "animal": {
        "lion": "lion", "tiger": "tiger", "fox": "fox", "monkey": "monkey", "horse": "horse", "cow face": "cow face",
        "pig face": "pig face", "giraffe": "giraffe", "bear": "bear", "koala": "koala", "frog": "frog",
    },
    "bird": {
        "chicken": "chicken", "chick": "baby chick", "songbird": "bird", "duck": "duck", "owl": "owl",
        "flamingo": "flamingo", "parrot": "parrot",
    },
    "reptile": {"crocodile": "crocodile", "snake": "snake", "t-rex": "T-Rex", "sauropod": "sauropod"},
    "fish": {"blue fish": "fish", "tropical fish": "tropical fish", "blowfish": "blowfish", "shark": "shark"},
    "sea animal": {
        "whale": "spouting whale", "dolphin": "dolphin", "crab": "crab", "squid": "squid", "jellyfish": "jellyfish",
    },
    "bug": {"caterpillar": "bug", "butterfly": "butterfly", "beetle": "beetle", "spider": "spider"},
    "fruit": {
        "grapes": "grapes", "watermelon": "watermelon", "tangerine": "tangerine", "lemon": "lemon", "banana": "banana",
        "red apple": "red apple", "green apple": "green apple", "pear": "pear", "cherries": "cherries",
        "strawberry": "strawberry",
    },
    "vegetable": {
        "tomato": "tomato", "avocado": "avocado", "eggplant": "eggplant", "carrot": "carrot", "corn": "ear of corn",
        "broccoli": "broccoli", "mushroom": "mushroom",
    },
    "food": {
        "croissant": "croissant", "pretzel": "pretzel", "cheese": "cheese wedge", "hamburger": "hamburger",
        "fries": "french fries", "pizza": "pizza",
    },
    "dessert": {
        "ice cream cone": "soft ice cream", "doughnut": "doughnut", "cookie": "cookie", "cupcake": "cupcake",
        "lollipop": "lollipop",
    },
    "drink": {"coffee": "hot beverage", "wine": "wine glass", "beer": "beer mug"},
    "pot": {"vase": "amphora", "honey pot": "honey pot", "jar": "jar", "teacup": "teacup without handle"},
    "vehicle": {
        "car": "automobile", "taxi": "taxi", "bus": "bus", "fire truck": "fire engine", "tractor": "tractor",
        "steam train": "locomotive",
    },
    "boat": {"sailboat": "sailboat"},
    "aircraft": {"airplane": "airplane", "helicopter": "helicopter", "ufo": "flying saucer"},
    "building": {"house": "house", "castle": "castle"},
    "ball": {"soccer ball": "soccer ball", "basketball": "basketball", "football": "american football"},
    "toy": {
        "balloon": "balloon", "nesting dolls": "nesting dolls", "die": "game die", "snowman": "snowman without snow",
    },
    "bag": {"handbag": "handbag", "purse": "purse", "briefcase": "briefcase", "suitcase": "luggage"},
    "clothes": {"shirt": "t-shirt", "dress": "dress"},
    "hat": {"top hat": "top hat", "crown": "crown"},
    "shoe": {"sneaker": "running shoe", "high heel": "high-heeled shoe"},
    "instrument": {"trumpet": "trumpet", "violin": "violin", "drum": "drum"},
    "tool": {"hammer": "hammer", "key": "key"},
    "device": {
        "television": "television", "camera": "camera", "light bulb": "light bulb", "alarm clock": "alarm clock",
    },
    "flower": {"rose": "rose", "sunflower": "sunflower", "tulip": "tulip"},
    "plant": {"pine tree": "evergreen tree", "palm tree": "palm tree", "cactus": "cactus"},
    "monster": {"ghost": "ghost", "skull": "skull", "pumpkin": "jack-o-lantern"},
    "smiley": {"grinning smiley": "grinning face", "cool smiley": "smiling face with sunglasses"},
    "weather": {"sun": "sun with face", "star": "glowing star"},
    "thing": {"umbrella": "umbrella", "gift": "wrapped gift", "heart": "red heart"},
}  # fmt: skip

# name -> (class word, Unicode name): never in any training stage, neither still nor animated.
HELD_OUT: dict[str, tuple[str, str]] = {
    "penguin": ("bird", "penguin"), "octopus": ("sea animal", "octopus"), "lady beetle": ("bug", "lady beetle"),
    "dragon": ("reptile", "dragon"), "turtle": ("reptile", "turtle"), "snail": ("bug", "snail"),
    "honeybee": ("bug", "honeybee"), "elephant": ("animal", "elephant"), "panda": ("animal", "panda"),
    "robot": ("toy", "robot"), "teddy bear": ("toy", "teddy bear"), "backpack": ("bag", "backpack"),
    "teapot": ("pot", "teapot"), "rocket": ("aircraft", "rocket"), "guitar": ("instrument", "guitar"),
    "pineapple": ("fruit", "pineapple"), "dog": ("dog", "dog"), "cat": ("cat", "cat"), "rabbit": ("rabbit", "rabbit"),
}  # fmt: skip

# Never used either: the same characters as held-out ones under another name.
HELD_OUT_TWINS = ("service dog", "guide dog", "dragon face", "mammoth", "beaver", "black bird")

# Background and object colours, sRGB. Far enough apart that jitter cannot turn one into another.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40), "orange": (245, 130, 32), "yellow": (250, 215, 60), "green": (60, 160, 75),
    "teal": (30, 160, 165), "blue": (45, 95, 210), "purple": (130, 65, 185), "pink": (245, 145, 185),
    "brown": (125, 80, 50), "black": (28, 28, 30), "gray": (140, 142, 146), "white": (246, 246, 246),
}  # fmt: skip

# Class words that say nothing of a shape: captions never use them in place of a name.
VAGUE_CLASSES = ("thing", "weather")

# Nouns that take no article.
PLURALS = (
    "grapes", "cherries", "fries", "nesting dolls", "clothes", "food",
)  # fmt: skip

SCENES = (
    "on grass", "in the snow", "on a beach", "under a night sky", "on a wooden table", "in a desert",
    "in a forest", "under water", "in front of a brick wall", "in a room",
)  # fmt: skip


def training_concepts() -> list[tuple[str, str, str]]:
    """Every trained concept as (name, class word, Unicode name), in a fixed order: a concept's index is its label."""
    return [(name, word, emoji) for word, members in CONCEPTS.items() for name, emoji in members.items()]
