"""Rebuilds the picture-caption shards of this folder from pinned npm packages.

    pip install pillow==13.0.0 fonttools==4.68.0 brotli==1.2.1 resvg-py==0.5.0
    python assets/data/emoji/build.py --packages DIR [--check]

DIR receives the packages (`npm pack`) if they are not there yet. Every picture is laid on white, brought to
64 x 64 and stored as a PNG with at most 128 colours. Shard `STYLE-train.tar` holds the concepts that the
unseen-concept split trains on, `STYLE-held.tar` the others; both together are the style.
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections import Counter

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
import resvg_py

HERE = os.path.dirname(os.path.abspath(__file__))
SIZE = 64
PACKAGES = {
    "emoji-datasource-google@16.0.0": "Noto colour pictures, names and groups",
    "emoji-datasource-twitter@16.0.0": "Twemoji pictures",
    "@lobehub/fluent-emoji-3d@1.1.0": "Fluent pictures",
    "@iconify-json/noto-v1@1.2.5": "the older, blob-shaped Noto",
    "emojione@2.2.7": "EmojiOne 2",
    "@fontsource/noto-emoji@5.3.2": "the monochrome Noto font",
    "openmoji@17.0.0": "OpenMoji drawings",
    "@iconify-json/fxemoji@1.2.2": "the drawings of Firefox OS",
    "cldr-annotations-full@48.2.0": "names and keywords",
    "cldr-annotations-derived-full@48.2.0": "names of sequences",
}
STYLES = ["noto", "twemoji", "blob", "emojione", "mono", "openmoji", "fxemoji", "fluent"]
HELD_SHARE = 10  # one concept family of so many is held out
GENDER = {
    "man", "men", "woman", "women", "person", "people", "boy", "boys", "girl", "girls", "mr", "mrs", "king",
    "queen", "prince", "princess", "male", "female", "mother", "father", "old", "older", "mx", "child",
}  # fmt: skip
# Words that number or turn an otherwise equal drawing.
VARIANT = {
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirty",
    "up", "down", "left", "right", "facing", "small", "medium", "large", "big", "red", "orange", "yellow",
    "green", "blue", "purple", "brown", "black", "white", "grey", "pink", "light", "dark", "1st", "2nd", "3rd",
    "and", "with", "open", "closed", "first", "last", "full", "new", "quarter", "waxing", "waning", "low",
    "high", "no", "not", "the", "of", "in", "on", "oncoming", "raised", "lowered",
}  # fmt: skip


def folder_of(spec):
    name, version = spec.rsplit("@", 1)
    return name.lstrip("@").replace("/", "-") + "-" + version


def fetch(packages):
    """Unpacks every package below `packages` and returns the folders by package."""
    out = {}
    for spec in PACKAGES:
        folder = os.path.join(packages, folder_of(spec))
        if not os.path.isdir(folder):
            subprocess.run(["npm", "pack", spec, "--silent"], cwd=packages, check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(folder + ".tgz") as tar:
                tar.extractall(folder, filter="data")
        out[spec.rsplit("@", 1)[0]] = os.path.join(folder, "package")
    return out


def canonical(code):
    """Code points without variation selectors, joiners and leading zeros: what all vendors agree on."""
    parts = [part.lstrip("0") for part in code.lower().split("-")]
    return "-".join(part for part in parts if part not in ("fe0f", "200d"))


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return json.load(file)


def concepts(folders):
    """code -> caption, keywords, group, subgroup of everything but flags, skin tones and components."""
    names = {}
    for package, section in (
        ("cldr-annotations-full", "annotations"),
        ("cldr-annotations-derived-full", "annotationsDerived"),
    ):
        table = read_json(folders[package], section, "en", "annotations.json")[section]["annotations"]
        for text, entry in table.items():
            code = canonical("-".join(f"{ord(c):x}" for c in text))
            names.setdefault(code, (entry["tts"][0], entry.get("default", [])))
    out = {}
    for entry in read_json(folders["emoji-datasource-google"], "emoji.json"):
        if entry["category"] in ("Flags", "Component") or canonical(entry["unified"]) not in names:
            continue
        caption, keywords = names[canonical(entry["unified"])]
        out[entry["unified"].lower()] = {
            "caption": caption,
            "keywords": keywords,
            "group": entry["category"],
            "subgroup": entry["subcategory"],
            "image": entry["image"],
            "names": [entry["name"] or "", caption],
        }
    return out


def family(concept):
    """Concepts that differ by gender, number, direction or colour only belong to one family."""
    caption = concept["caption"].lower()
    if concept["subgroup"] in ("time", "keycap", "geometric", "moon", "family", "arrow", "alphanum"):
        return concept["subgroup"] + ":" + ("clock" if re.search("o’clock|thirty", caption) else caption.split(":")[0])
    words = [w for w in re.findall(r"[a-z0-9]+", caption) if w not in GENDER and w not in VARIANT]
    return " ".join(sorted(words)) or concept["subgroup"]


def held(concept):
    return int(hashlib.sha256(family(concept).encode()).hexdigest(), 16) % HELD_SHARE == 0


def on_white(image):
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    image = white.convert("RGB")
    return image if image.size == (SIZE, SIZE) else image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def by_code(folder, extension):
    names = [name for name in os.listdir(folder) if name.endswith(extension)]
    return {canonical(name[: -len(extension)]): os.path.join(folder, name) for name in names}


def slug(caption):
    plain = caption.lower().translate(str.maketrans("ñéåãçí’", "neaaci-"))
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")


def from_svg(text):
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text, width=SIZE, height=SIZE))))


def from_icon(icons, name):
    """Picture of one icon of an Iconify set."""
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    return from_svg(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )


def drawings(style, folders, table, packages):
    """code -> picture of one style, where it has one."""
    if style in ("noto", "twemoji"):
        package, part = {
            "noto": ("emoji-datasource-google", "google"),
            "twemoji": ("emoji-datasource-twitter", "twitter"),
        }[style]
        folder = os.path.join(folders[package], "img", part, "64")
        files = {code: os.path.join(folder, concept["image"]) for code, concept in table.items()}
        return {c: Image.open(f) for c, f in files.items() if os.path.exists(f)}
    if style in ("fluent", "emojione"):
        package, path, extension = {
            "fluent": ("@lobehub/fluent-emoji-3d", "assets", ".webp"),
            "emojione": ("emojione", "assets/png", ".png"),
        }[style]
        files = by_code(os.path.join(folders[package], path), extension)
        return {c: Image.open(files[canonical(c)]) for c in table if canonical(c) in files}
    if style == "blob":
        icons = read_json(folders["@iconify-json/noto-v1"], "icons.json")
        out = {}
        for code, concept in table.items():
            name = slug(concept["caption"])
            name = icons.get("aliases", {}).get(name, {}).get("parent", name)
            if name in icons["icons"]:
                out[code] = from_icon(icons, name)
        return out
    if style == "fxemoji":
        # named by Unicode's name in one word
        icons = read_json(folders["@iconify-json/fxemoji"], "icons.json")
        out = {}
        for code, concept in table.items():
            names = [re.sub("[^a-z0-9]+", "", name.lower()) for name in concept["names"]]
            name = next((name for name in names if name in icons["icons"]), None)
            if name:
                out[code] = from_icon(icons, name)
        return out
    if style == "openmoji":
        files = by_code(os.path.join(folders["openmoji"], "color/svg"), ".svg")
        return {c: from_svg(open(files[canonical(c)], encoding="utf-8").read()) for c in table if canonical(c) in files}
    assert style == "mono"
    path = os.path.join(packages, "noto-emoji.ttf")
    font = TTFont(os.path.join(folders["@fontsource/noto-emoji"], "files/noto-emoji-emoji-400-normal.woff2"))
    font.flavor = None
    font.save(path)
    font = ImageFont.truetype(path, 4 * 50)
    out = {}
    for code in table:
        text = "".join(chr(int(part, 16)) for part in code.split("-"))
        image = Image.new("RGB", (4 * SIZE, 4 * SIZE), "white")
        left, top, right, bottom = font.getbbox(text)
        if right - left <= 4 * SIZE:  # wider: the font has no glyph for the sequence as a whole
            at = (2 * SIZE - (left + right) / 2, 2 * SIZE - (top + bottom) / 2)
            ImageDraw.Draw(image).text(at, text, font=font, fill="black")
            out[code] = image
    return out


def png(image):
    file = io.BytesIO()
    image.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def shard(samples):
    """A tar of (key, picture, annotation), the same bytes every time."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, picture, annotation in samples:
            text = json.dumps(annotation, ensure_ascii=False, separators=(",", ":")).encode()
            for extension, body in (("png", picture), ("json", text)):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return file.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", required=True, help="folder of the npm packages")
    parser.add_argument("--check", action="store_true", help="compare with the shards here, write nothing")
    options = parser.parse_args()
    os.makedirs(options.packages, exist_ok=True)
    folders = fetch(options.packages)
    table = concepts(folders)
    files, counts = {}, Counter()
    for style in STYLES:
        parts = {"train": [], "held": []}
        for code, image in sorted(drawings(style, folders, table, options.packages).items()):
            concept = table[code]
            annotation = {field: concept[field] for field in ("caption", "keywords", "group", "subgroup")}
            annotation["image_id"] = f"{style}-{code}"
            part = "held" if held(concept) else "train"
            parts[part].append((f"{style}-{code}", png(on_white(image)), annotation))
        for part, samples in parts.items():
            name = f"{style}-{part}.tar"
            files[name], counts[name] = shard(samples), len(samples)
    split = {code: "held" if held(c) else "train" for code, c in sorted(table.items())}
    lines = [f"{code}\t{part}\t{family(table[code])}\t{table[code]['caption']}" for code, part in split.items()]
    files["concepts.tsv"] = ("code\tsplit\tfamily\tcaption\n" + "\n".join(lines) + "\n").encode()
    sums = [f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in sorted(files.items())]
    files["SHA256SUMS"] = "".join(sums).encode()
    for name, body in sorted(files.items()):
        path = os.path.join(HERE, name)
        if options.check:
            with open(path, "rb") as file:
                same = file.read() == body
            print(f"{'same' if same else 'DIFFERENT':9} {name}")
        else:
            with open(path + ".part", "wb") as file:
                file.write(body)
            os.replace(path + ".part", path)
            print(f"{len(body):10} bytes {counts[name]:5} pictures  {name}")


if __name__ == "__main__":
    main()
