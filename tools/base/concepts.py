"""What the embedded base can draw: its concepts by class, the colours it knows, and what is kept from it.

A concept is (the name used in captions, the Unicode name of its emoji). The name is what a person would type.
`HELD_OUT` never reaches any training stage: its members are the subjects people teach to the base later, and
`examples/subjects` and `benchmarks/` are made of them.
"""

# class word -> {name in captions: Unicode name}
CONCEPTS: dict[str, dict[str, str]] = {
    "dog": {"dog face": "dog face", "poodle": "poodle", "wolf": "wolf"},
    "cat": {
        "cat face": "cat face", "black cat": "black cat", "grinning cat": "grinning cat", "crying cat": "crying cat",
        "pouting cat": "pouting cat",
    },
    "rabbit": {"rabbit face": "rabbit face"},
    "rodent": {
        "mouse face": "mouse face", "hamster": "hamster", "rat": "rat", "mouse": "mouse", "chipmunk": "chipmunk",
        "hedgehog": "hedgehog",
    },
    "animal": {
        "lion": "lion", "tiger": "tiger", "fox": "fox", "monkey": "monkey", "horse": "horse", "cow face": "cow face",
        "pig face": "pig face", "giraffe": "giraffe", "bear": "bear", "koala": "koala", "frog": "frog",
        "gorilla": "gorilla", "orangutan": "orangutan", "monkey face": "monkey face", "raccoon": "raccoon",
        "tiger face": "tiger face", "leopard": "leopard", "horse face": "horse face", "moose": "moose",
        "donkey": "donkey", "unicorn": "unicorn", "zebra": "zebra", "deer": "deer", "bison": "bison", "ox": "ox",
        "water buffalo": "water buffalo", "cow": "cow", "pig": "pig", "boar": "boar", "ram": "ram", "sheep": "ewe",
        "goat": "goat",
    },
    "bird": {
        "chicken": "chicken", "chick": "baby chick", "songbird": "bird", "duck": "duck", "owl": "owl",
        "flamingo": "flamingo", "parrot": "parrot", "turkey": "turkey", "rooster": "rooster",
        "hatching chick": "hatching chick", "front chick": "front-facing baby chick", "dove": "dove", "eagle": "eagle",
        "swan": "swan", "dodo": "dodo", "peacock": "peacock", "goose": "goose",
    },
    "reptile": {
        "crocodile": "crocodile", "snake": "snake", "t-rex": "T-Rex", "sauropod": "sauropod", "lizard": "lizard",
    },
    "fish": {"blue fish": "fish", "tropical fish": "tropical fish", "blowfish": "blowfish", "shark": "shark"},
    "sea animal": {
        "whale": "spouting whale", "dolphin": "dolphin", "crab": "crab", "squid": "squid", "jellyfish": "jellyfish",
        "blue whale": "whale", "seal": "seal", "lobster": "lobster", "shrimp": "shrimp", "oyster": "oyster",
        "spiral shell": "spiral shell", "coral": "coral",
    },
    "bug": {
        "caterpillar": "bug", "butterfly": "butterfly", "beetle": "beetle", "spider": "spider", "ant": "ant",
        "cricket": "cricket", "cockroach": "cockroach", "scorpion": "scorpion", "mosquito": "mosquito", "fly": "fly",
        "worm": "worm", "microbe": "microbe",
    },
    "fruit": {
        "grapes": "grapes", "watermelon": "watermelon", "tangerine": "tangerine", "lemon": "lemon", "banana": "banana",
        "red apple": "red apple", "green apple": "green apple", "pear": "pear", "cherries": "cherries",
        "strawberry": "strawberry", "melon": "melon", "mango": "mango", "peach": "peach", "blueberries": "blueberries",
        "kiwi fruit": "kiwi fruit", "olive": "olive", "coconut": "coconut",
    },
    "vegetable": {
        "tomato": "tomato", "avocado": "avocado", "eggplant": "eggplant", "carrot": "carrot", "corn": "ear of corn",
        "broccoli": "broccoli", "mushroom": "mushroom", "potato": "potato", "hot pepper": "hot pepper",
        "bell pepper": "bell pepper", "cucumber": "cucumber", "leafy green": "leafy green", "garlic": "garlic",
        "onion": "onion",
    },
    "food": {
        "croissant": "croissant", "pretzel": "pretzel", "cheese": "cheese wedge", "hamburger": "hamburger",
        "fries": "french fries", "pizza": "pizza", "bread": "bread", "baguette": "baguette bread", "bagel": "bagel",
        "pancakes": "pancakes", "waffle": "waffle", "meat on bone": "meat on bone", "poultry leg": "poultry leg",
    },
    "dessert": {
        "ice cream cone": "soft ice cream", "doughnut": "doughnut", "cookie": "cookie", "cupcake": "cupcake",
        "lollipop": "lollipop", "shaved ice": "shaved ice", "ice cream": "ice cream", "birthday cake": "birthday cake",
        "shortcake": "shortcake", "pie": "pie", "chocolate bar": "chocolate bar", "candy": "candy",
    },
    "drink": {
        "coffee": "hot beverage", "wine": "wine glass", "beer": "beer mug", "milk": "glass of milk",
        "champagne": "bottle with popping cork", "cocktail": "cocktail glass", "tropical drink": "tropical drink",
        "whisky": "tumbler glass", "soda": "cup with straw",
    },
    "pot": {
        "vase": "amphora", "honey pot": "honey pot", "jar": "jar", "teacup": "teacup without handle",
        "bowl": "bowl with spoon", "bucket": "bucket", "basket": "basket",
    },
    "vehicle": {
        "car": "automobile", "taxi": "taxi", "bus": "bus", "fire truck": "fire engine", "tractor": "tractor",
        "steam train": "locomotive", "railway car": "railway car", "bullet train": "bullet train", "metro": "metro",
        "tram": "tram", "trolleybus": "trolleybus", "ambulance": "ambulance",
    },
    "boat": {
        "sailboat": "sailboat", "canoe": "canoe", "speedboat": "speedboat", "passenger ship": "passenger ship",
        "ferry": "ferry", "motor boat": "motor boat", "ship": "ship",
    },
    "aircraft": {
        "airplane": "airplane", "helicopter": "helicopter", "ufo": "flying saucer", "small airplane": "small airplane",
        "parachute": "parachute", "satellite": "satellite", "cable car": "aerial tramway", "kite": "kite",
    },
    "building": {"house": "house", "castle": "castle"},
    "ball": {
        "soccer ball": "soccer ball", "basketball": "basketball", "football": "american football",
        "baseball": "baseball", "volleyball": "volleyball", "tennis ball": "tennis", "rugby ball": "rugby football",
        "8 ball": "pool 8 ball", "crystal ball": "crystal ball",
    },
    "toy": {
        "balloon": "balloon", "nesting dolls": "nesting dolls", "die": "game die", "snowman": "snowman without snow",
        "yo-yo": "yo-yo", "water pistol": "water pistol", "game controller": "video game", "joystick": "joystick",
        "puzzle piece": "puzzle piece", "pinata": "piñata",
    },
    "bag": {
        "handbag": "handbag", "purse": "purse", "briefcase": "briefcase", "suitcase": "luggage",
        "clutch bag": "clutch bag", "shopping bags": "shopping bags", "money bag": "money bag",
    },
    "clothes": {
        "shirt": "t-shirt", "dress": "dress", "necktie": "necktie", "jeans": "jeans", "scarf": "scarf",
        "gloves": "gloves", "coat": "coat", "socks": "socks",
    },
    "hat": {
        "top hat": "top hat", "crown": "crown", "graduation cap": "graduation cap", "baseball cap": "billed cap",
        "army helmet": "military helmet", "rescue helmet": "rescue worker’s helmet", "sun hat": "woman’s hat",
    },
    "shoe": {
        "sneaker": "running shoe", "high heel": "high-heeled shoe", "loafer": "man’s shoe",
        "hiking boot": "hiking boot", "flat shoe": "flat shoe", "sandal": "woman’s sandal", "boot": "woman’s boot",
        "ballet shoes": "ballet shoes",
    },
    "instrument": {
        "trumpet": "trumpet", "violin": "violin", "drum": "drum", "saxophone": "saxophone", "accordion": "accordion",
        "keyboard piano": "musical keyboard", "banjo": "banjo", "long drum": "long drum", "maracas": "maracas",
    },
    "tool": {"hammer": "hammer", "key": "key"},
    "device": {
        "television": "television", "camera": "camera", "light bulb": "light bulb", "alarm clock": "alarm clock",
    },
    "flower": {
        "rose": "rose", "sunflower": "sunflower", "tulip": "tulip", "bouquet": "bouquet",
        "cherry blossom": "cherry blossom", "lotus": "lotus", "hibiscus": "hibiscus", "blossom": "blossom",
        "hyacinth": "hyacinth",
    },
    "plant": {
        "pine tree": "evergreen tree", "palm tree": "palm tree", "cactus": "cactus", "seedling": "seedling",
        "potted plant": "potted plant", "deciduous tree": "deciduous tree", "herb": "herb",
        "clover": "four leaf clover", "maple leaf": "maple leaf",
    },
    "monster": {
        "ghost": "ghost", "skull": "skull", "pumpkin": "jack-o-lantern", "ogre": "ogre", "goblin": "goblin",
        "alien": "alien", "space invader": "alien monster", "clown": "clown face", "poo": "pile of poo",
    },
    "smiley": {
        "grinning smiley": "grinning face", "cool smiley": "smiling face with sunglasses",
        "smiling smiley": "smiling face with smiling eyes", "laughing smiley": "face with tears of joy",
        "winking smiley": "winking face", "angel smiley": "smiling face with halo",
        "love smiley": "smiling face with heart-eyes", "star-struck smiley": "star-struck",
    },
    "weather": {"sun": "sun with face", "star": "glowing star"},
    "thing": {"umbrella": "umbrella", "gift": "wrapped gift", "heart": "red heart"},
    "person": {
        "baby": "baby", "cook": "cook", "farmer": "farmer", "astronaut": "astronaut", "firefighter": "firefighter",
        "police officer": "police officer", "detective": "detective", "ninja": "ninja", "prince": "prince",
        "princess": "princess", "santa claus": "Santa Claus", "mage": "mage", "fairy": "fairy", "vampire": "vampire",
        "mermaid": "mermaid", "elf": "elf", "genie": "genie", "zombie": "zombie",
    },
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
    "grapes", "cherries", "fries", "nesting dolls", "clothes", "food", "ballet shoes", "blueberries", "bread",
    "candy", "champagne", "coral", "garlic", "gloves", "jeans", "leafy green", "maracas", "milk", "pancakes",
    "shopping bags", "socks", "soda", "whisky",
)  # fmt: skip

SCENES = (
    "on grass", "in the snow", "on a beach", "under a night sky", "on a wooden table", "in a desert",
    "in a forest", "under water", "in front of a brick wall", "in a room",
)  # fmt: skip


def training_concepts() -> list[tuple[str, str, str]]:
    """Every trained concept as (name, class word, Unicode name), in a fixed order: a concept's index is its label."""
    return [(name, word, emoji) for word, members in CONCEPTS.items() for name, emoji in members.items()]
