"""Makes the language model's text and both vocabularies of the nano model from pinned npm packages.

    pip install tokenizers==0.22.2
    python assets/recipes/nano/texts.py --packages DIR

DIR holds the packages that `assets/data/emoji/build.py --packages DIR` fetches. Written here: `texts.txt` (one text
a line: every English name of an emoji in CLDR, its keywords, and questions with answers about names and groups),
`contexts.txt` (words of a name and keywords in any order, the token that begins a text, and the name: what stands before
the beginning matters, and may be repeated),
`held_out.txt` (every fortieth line, for validation), `tokenizers/language` (byte-level BPE, OPT's form) and
`tokenizers/qformer` (WordPiece, BERT's form).
"""

import argparse
import json
import os
import random
import re
import sys

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../data/emoji"))
import build  # noqa: E402

LANGUAGE_TOKENS = 2048
QFORMER_TOKENS = 2048


def cleaned(caption):
    """BLIP's caption cleaning, as the loader applies it."""
    text = re.sub(r"[.!\"()*#:;~]", " ", caption.lower())
    return re.sub(r"\s{2,}", " ", text).strip()


def context(draw, name, keywords):
    """What may stand before a name: a third of the time keywords alone, else words of the name among them, in any order."""
    own = name.split()
    some = draw.sample(keywords, min(len(keywords), draw.randint(0, 3)))
    kept = [word for word in own if draw.random() < 0.8] if draw.random() < 0.67 else []
    words = kept + " ".join(some).split() or own
    draw.shuffle(words)
    return " ".join(words[:10])


def texts(folders):
    """Lines of text in a fixed order, and names behind some of their keywords."""
    lines, keywords, contexts = [], set(), []
    for package, section in (
        ("cldr-annotations-full", "annotations"),
        ("cldr-annotations-derived-full", "annotationsDerived"),
    ):
        table = build.read_json(folders[package], section, "en", "annotations.json")[section]["annotations"]
        for entry in table.values():
            lines.append(cleaned(entry["tts"][0]))
    for concept in build.concepts(folders).values():
        name, group = cleaned(concept["caption"]), cleaned(concept["group"].replace("&", "and"))
        kind = cleaned(concept["subgroup"].replace("-", " ").replace("&", "and"))
        lines += [
            name,
            f"Question: what is this? Answer: {name}",
            f"Question: what kind of thing is {name}? Answer: {group}",
            f"{name} is {kind}",
        ]
        # the name follows from what stands before it, as it will from the queries
        words = [cleaned(keyword) for keyword in concept["keywords"]]
        for seed in range(14):
            before = context(random.Random(f"{name} {seed}"), name, words)
            # some ask, as `blip2 vqa` does
            after = {0: f"Question: what is this? Answer: {name}", 1: f"Question: what kind of thing is this? Answer: {group}"}
            contexts.append(f"{before}</s>{after.get(seed % 7, name)}")
        keywords.update(cleaned(keyword) for keyword in concept["keywords"])
    lines = [line for line in lines + sorted(keywords) if line]
    random.Random(0).shuffle(lines)
    return lines, contexts


def save(tokenizer, folder, config):
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    special = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    with open(os.path.join(folder, "special_tokens_map.json"), "w", encoding="utf-8") as file:
        json.dump(special, file, indent=2)
        file.write("\n")


def added(tokenizer, names):
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(tokenizer.token_to_id(name)): {"content": name, **plain} for name in names}


def language(lines):
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LANGUAGE_TOKENS,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # a word is spelled alike at the beginning of a text and after a space
    tokenizer.train_from_iterator([line for text in lines for line in (text, " " + text)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
    )
    config = {
        "add_bos_token": True,
        "add_prefix_space": False,
        "added_tokens_decoder": added(tokenizer, special),
        "bos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 64,
        "pad_token": "<pad>",
        "padding_side": "left",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "</s>",
    }
    save(tokenizer, os.path.join(HERE, "tokenizers/language"), config)
    model = json.loads(tokenizer.to_str())["model"]
    folder = os.path.join(HERE, "tokenizers/language")
    with open(os.path.join(folder, "vocab.json"), "w", encoding="utf-8") as file:
        json.dump(model["vocab"], file, ensure_ascii=False)
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))


def qformer(lines):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=QFORMER_TOKENS, special_tokens=special, show_progress=False, continuing_subword_prefix="##"
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    config = {
        "added_tokens_decoder": added(tokenizer, special),
        "bos_token": "[DEC]",
        "clean_up_tokenization_spaces": True,
        "cls_token": "[CLS]",
        "do_lower_case": True,
        "mask_token": "[MASK]",
        "model_max_length": 64,
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        "unk_token": "[UNK]",
    }
    folder = os.path.join(HERE, "tokenizers/qformer")
    save(tokenizer, folder, config)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8") as file:
        file.write("".join(token + "\n" for token, _ in vocab))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", required=True, help="folder of the npm packages")
    parser.add_argument("--vocabularies", action="store_true", help="train the vocabularies too; ids may change")
    options = parser.parse_args()
    lines, contexts = texts(build.fetch(options.packages))
    if options.vocabularies:
        language(lines)
        qformer(lines)
    for name, part in (
        ("texts.txt", [line for i, line in enumerate(lines) if i % 40]),
        ("held_out.txt", lines[::40]),
        ("contexts.txt", contexts),
    ):
        with open(os.path.join(HERE, name), "w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in part))
        print(f"{len(part):6} lines  {name}")


if __name__ == "__main__":
    main()
