#pragma once

#include <string_view>

namespace switchyard {

// Words of the keys "adjective-noun" of the English tasks; RULER takes such pairs, too.
inline constexpr std::string_view kAdjectives[] = {
    "able",   "amber",  "ancient", "azure",  "bitter",  "blank",   "bold",   "brave",  "brief",
    "bright", "broad",  "bronze",  "busy",   "calm",    "careful", "cheap",  "chilly", "civil",
    "clean",  "clever", "cloudy",  "coarse", "cold",    "common",  "cosy",   "crisp",  "curious",
    "curly",  "damp",   "daring",  "deep",   "dense",   "dizzy",   "dry",    "dusty",  "eager",
    "early",  "easy",   "elder",   "empty",  "even",    "exact",   "faint",  "fair",   "famous",
    "fancy",  "fast",   "fierce",  "firm",   "flat",    "fluffy",  "foggy",  "fond",   "formal",
    "fresh",  "frozen", "funny",   "gentle", "giant",   "glad",    "golden", "grand",  "gray",
    "green",  "happy",  "harsh",   "heavy",  "hidden",  "hollow",  "honest", "humble", "hungry",
    "icy",    "idle",   "jolly",   "keen",   "kind",    "large",   "late",   "lazy",   "level",
    "light",  "little", "lively",  "local",  "lonely",  "loud",    "lucky",  "lunar",  "mellow",
    "merry",  "mild",   "misty",   "modern", "modest",  "muddy",   "narrow", "neat",   "noble",
    "noisy",  "odd",    "orange",  "pale",   "patient", "plain",   "polite", "proud",  "purple",
    "quick",  "quiet",  "rapid",   "rare",   "ready",   "rich",    "rough",  "round",  "royal",
    "rusty",  "salty",  "shiny",
};

inline constexpr std::string_view kNouns[] = {
    "acorn",   "anchor",     "apple",   "arrow",    "badge",   "bakery",  "balloon", "banner",
    "barrel",  "basket",     "beach",   "bench",    "berry",   "blanket", "boat",    "border",
    "bottle",  "bridge",     "bucket",  "cabin",    "camera",  "candle",  "canyon",  "carpet",
    "castle",  "cave",       "chair",   "cherry",   "circle",  "clock",   "cloud",   "coast",
    "comet",   "copper",     "corner",  "cotton",   "cradle",  "crown",   "desert",  "door",
    "drum",    "eagle",      "engine",  "falcon",   "feather", "fence",   "ferry",   "field",
    "flame",   "flute",      "forest",  "fountain", "garden",  "gate",    "glacier", "glove",
    "harbor",  "hammer",     "helmet",  "hill",     "honey",   "house",   "island",  "jacket",
    "jewel",   "kettle",     "kitchen", "ladder",   "lake",    "lantern", "lemon",   "letter",
    "library", "lighthouse", "lion",    "market",   "marble",  "meadow",  "mirror",  "mitten",
    "moon",    "mountain",   "needle",  "nest",     "ocean",   "orchard", "paddle",  "palace",
    "pebble",  "pencil",     "piano",   "pillow",   "pocket",  "pond",    "prairie", "quilt",
    "rabbit",  "radio",      "rain",    "ribbon",   "river",   "road",    "rocket",  "saddle",
    "school",  "shell",      "shovel",  "spoon",    "stone",   "story",   "stream",  "sunset",
    "table",   "temple",     "thread",  "tiger",    "tower",   "train",   "tunnel",  "valley",
};

}  // namespace switchyard
