"""Folders that `blip2 convert` and `blip2-train export` write, opened by transformers.

    cargo build --release
    python tests/peers/reload.py [--commands target/release]

Needs torch 2.9.0, transformers 4.57.6, safetensors. Every container that is read (one safetensors file, shards,
pytorch_model.bin, LAVIS .pth beside the files it leaves out) is converted, tiny runs of every stage are trained and
exported, and each folder is opened with the class that its config.json names: no tensor may be missing, left over or of
another shape. Then logits are compared with those of the original: transformers' own of the fixture before conversion,
LAVIS's of the .pth, `blip2`'s of an export. 1e-5, as both sides compute in f32 from the same bits; 1e-4 where another
engine computed the one side, as in the parity suite.

Prints a Markdown table; exit code 1 if a row fails.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from commands import run

TESTS = Path(__file__).resolve().parent.parent
PARITY = TESTS / "fixtures" / "parity"
PICTURE = PARITY / "images" / "boat.png"
PROMPT = "a photo of"
TEXT = "a small boat on the blue water"
SAME, OTHER = 1e-5, 1e-4  # engine

# heads of LAVIS's stage 1 that no transformers class has: grounded generation and the contrastive temperature
STAGE_1_ONLY = ("qformer_lm_head.", "temp")
# text branch of a Q-Former that reads questions: transformers has no class that feeds it beside a language model
QUESTIONS_ONLY = ("embeddings.",)


class Strict(Exception):
    pass


def load(folder, name=None, extra=()):
    """The model, if its class reads the folder without a remainder; `extra` are prefixes that may be left over."""
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, name or config["architectures"][0])
    model, info = kind.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(tuple(extra))]
    found = {"missing": info["missing_keys"], "unexpected": unexpected, "mis-shaped": info["mismatched_keys"]}
    found = [f"{what}: {', '.join(sorted(keys))}" for what, keys in found.items() if keys]
    if found:
        raise Strict("; ".join(found))
    return model.eval(), len(info["unexpected_keys"])


@torch.no_grad()
def next_logits(model, pixels, ids, mask):
    """Logits behind the prompt, `ids` without placeholders: the model part by part, which runs every layout of ids."""
    image = model.vision_model(pixels).last_hidden_state
    queries = model.query_tokens.expand(len(pixels), -1, -1)
    queries = model.qformer(query_embeds=queries, encoder_hidden_states=image).last_hidden_state
    soft = model.language_projection(queries)
    words = model.language_model.get_input_embeddings()(ids)
    embeds = torch.cat([soft, words], 1)
    mask = torch.cat([torch.ones(soft.shape[:2], dtype=torch.long), mask], 1)
    more = {}
    if not model.config.use_decoder_only_language_model:
        more["decoder_input_ids"] = torch.full((len(ids), 1), model.config.text_config.decoder_start_token_id)
    return model.language_model(inputs_embeds=embeds, attention_mask=mask, **more).logits[:, -1]


@torch.no_grad()
def matching(model, pixels, ids, mask):
    """ITM logits [texts, 2] of one picture."""
    if model.config.image_token_index is not None:  # placeholders, which it cuts off again
        count = model.config.num_query_tokens
        ids = torch.cat([torch.full((len(ids), count), model.config.image_token_index), ids], 1)
        mask = torch.cat([torch.ones(len(mask), count, dtype=torch.long), mask], 1)
    pixels = pixels.expand(len(ids), -1, -1, -1)
    return model(pixels, ids, attention_mask=mask, use_image_text_matching_head=True).logits_per_image


def against_expected(folder, model, queries):
    """Largest difference to a fixture's expected logits; HF fixtures have `queries` placeholders in front of ids."""
    want = load_file(folder / "expected.safetensors")
    pixels = want["pixel_values"]
    if "itm.logits" in want:
        rows = [matching(model, pixels[i : i + 1], want["text.input_ids"], want["text.attention_mask"]) for i in range(len(pixels))]
        return (torch.stack(rows) - want["itm.logits"]).abs().max().item()
    ids, mask = want["prompt.input_ids"][:, queries:], want["prompt.attention_mask"][:, queries:]
    return (next_logits(model, pixels, ids, mask) - want["logits"]).abs().max().item()


class Table:
    def __init__(self):
        self.rows, self.failed = [], False

    def check(self, name, written, bound, work):
        try:
            kind, tensors, difference, note = work()
            good = difference is None or difference <= bound
            result = "not comparable" if difference is None else f"{difference:.1e}"
        except Strict as error:
            kind, tensors, good, result, note = "", "", False, "", str(error)
        self.failed |= not good
        self.rows.append((name, written, kind, tensors, result, f"{bound:.0e}", "yes" if good else "NO", note))
        print(f"{'ok  ' if good else 'FAIL'} {name} {result} {note}", file=sys.stderr, flush=True)

    def print(self):
        head = ("source", "written by", "transformers class", "tensors", "largest difference of logits", "bound", "passes", "note")
        for row in (head, ("---",) * len(head), *self.rows):
            print("| " + " | ".join(str(cell) for cell in row) + " |")


def count(folder):
    return sum(len(load_file(file)) for file in folder.glob("*.safetensors"))


def result(folder, model, difference, note=""):
    return type(model).__name__, count(folder), difference, note


def converted(table, blip2, work):
    def convert(source, name, *more):
        out = work / name
        run(blip2, "convert", source, out, "--to", "hf", "--offline", *more)
        return out

    shards = ("--max-shard-bytes", "60000")
    fixtures = [
        ("opt", "one safetensors file", ()),
        ("opt", "one safetensors file, into shards", shards),
        ("opt-legacy", "safetensors shards, no image token", ()),
        ("t5", "pytorch_model.bin", ()),
        ("t5", "pytorch_model.bin, into shards", shards),
        ("itm", "one safetensors file", ()),
    ]
    for name, what, more in fixtures:

        def one(name=name, more=more):
            folder = convert(PARITY / name, f"{name}{len(more)}", *more)
            assert (folder / "model.safetensors.index.json").exists() == bool(more)
            model, _ = load(folder)
            placeholders = model.config.num_query_tokens
            return result(folder, model, against_expected(PARITY / name, model, placeholders))

        table.check(f"{name}: {what}", "`blip2 convert --to hf`", SAME, one)

    def post_norm():
        """transformers makes `language_projection` as wide as the layers, not the tokens: it refuses the original too."""
        refusals = []
        for folder in (PARITY / "opt-350m-form", convert(PARITY / "opt-350m-form", "opt-350m-form")):
            try:
                load(folder)
                raise Strict("opened, which it could not")
            except RuntimeError as error:
                refusals.append([line.strip() for line in str(error).splitlines() if "size mismatch" in line])
        if refusals[0] != refusals[1] or "[24]) from checkpoint" not in refusals[0][0]:
            raise Strict(f"refused otherwise than the original: {refusals}")
        return "Blip2ForConditionalGeneration", count(PARITY / "opt-350m-form"), None, "refused, as the original is: its projection has the tokens' width"

    table.check("opt-350m-form: one safetensors file", "`blip2 convert --to hf`", SAME, post_norm)

    lavis = {
        "lavis-stage2-opt": ("checkpoint.pth", "--vision", "eva_vit_g.pth", "--llm", "opt-language-model"),
        "lavis-stage2-t5": ("checkpoint.pth", "--vision", "clip_vit_L.pth", "--llm", "t5-language-model"),
        "lavis-stage1": ("blip2_pretrained.pth", "--tokenizer", "bert-base-uncased"),
    }
    for name, (file, *parts) in lavis.items():

        def one(name=name, file=file, parts=parts):
            folder = PARITY / name
            facts = json.loads((folder / "expected.json").read_text())["model"]
            heads = work / f"{name}.json"
            heads.write_text(json.dumps({
                "vision_config": {"num_attention_heads": facts["vit_heads"]},
                "qformer_config": {"num_attention_heads": facts["qformer_heads"]},
            }))
            more = [part if part.startswith("--") else folder / part for part in parts]
            out = convert(folder / file, name, *more, "--config", heads)
            if name == "lavis-stage1":
                model, extra = load(out, "Blip2ForImageTextRetrieval", STAGE_1_ONLY)
                return result(out, model, against_expected(folder, model, 0), f"{extra} tensors of heads that it lacks are left over")
            if "clip" in parts[1]:
                try:
                    load(out)
                    raise AssertionError("opened, which it could not")
                except Strict as error:
                    left = "vision_model.embeddings.patch_embedding.bias; unexpected: vision_model.pre_layernorm"
                    if left not in str(error):
                        raise
                    return "none", count(out), None, "transformers has no BLIP-2 class with a CLIP encoder, and `convert` says so"
            model, _ = load(out)
            return result(out, model, against_expected(folder, model, 0))

        table.check(f"{name}: {' and '.join([file, *parts[1::2]])}", "`blip2 convert --to hf`", OTHER, one)


def data(work):
    rows = []
    for name, caption in (("boat", "a small boat on the blue water"), ("house", "a house with a red roof"), ("fruit", "a red apple")):
        rows.append({"image": f"{name}.png", "caption": caption, "question": "What is it?", "answer": [name]})
    file = work / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"[[data.train]]\npath = \"{file}\"\nimages = \"{PARITY / 'images'}\"\n"


RUN = "[train]\nbatch_size = 3\n{train}\n[schedule]\nmax_iters = 3\nwarmup_steps = 0\ninit_lr = 1e-3\n"


def exported(table, blip2, trainer, work):
    def train(name, head, train="", dtype=None):
        recipe = work / f"{name}.toml"
        recipe.write_text(f"{head}\n{data(work)}{RUN.format(train=train)}")
        run(trainer, "train", recipe, "--out", work / name)
        out = work / f"{name}-export"
        run(trainer, "export", work / name, "--out", out, *(["--dtype", dtype] if dtype else []))
        return out

    def trace(folder):
        file = folder / "trace.sft"
        run(blip2, "trace", PICTURE, "--prompt", PROMPT, "--model", folder, "--out", file, "--dtype", "f32", "--quiet")
        return load_file(file)

    def generates(folder, extra=()):
        model, left = load(folder, extra=extra)
        tokens = transformers.AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
        return model, left, tokens["input_ids"], tokens["attention_mask"]

    def stage_2(name, family, train, dtype=None):
        out = train_of(name, f"stage = \"stage2\"\n[model]\nbase = \"{PARITY / family}\"", train, dtype)
        model, _, ids, mask = generates(out)
        numbers = trace(out)
        got = next_logits(model, numbers["pixel_values"], ids, mask)
        return result(out, model, (got - numbers["logits"]).abs().max().item())

    train_of = train
    lora = 'lora = {target = "language_model", rank = 2}'
    table.check("stage 2, OPT", "`blip2-train export`", OTHER, lambda: stage_2("opt-run", "opt", ""))
    table.check("stage 2, OPT, adapters merged", "`blip2-train export`", OTHER, lambda: stage_2("lora-run", "opt", lora))
    table.check("stage 2, OPT, bf16 (both read it as f32)", "`blip2-train export --dtype bf16`", OTHER, lambda: stage_2("bf16-run", "opt", "", "bf16"))
    table.check("stage 2, T5, encoder trained", "`blip2-train export`", OTHER, lambda: stage_2("t5-run", "t5", "train_vision = true"))

    def stage_1():
        out = train("itm-run", f"stage = \"stage1\"\n[model]\nbase = \"{PARITY / 'itm'}\"")
        model, extra = load(out, "Blip2ForImageTextRetrieval", STAGE_1_ONLY)
        line = json.loads(run(blip2, "match", PICTURE, TEXT, "--model", out, "--json", "--quiet"))
        tokens = transformers.AutoTokenizer.from_pretrained(out)(TEXT, return_tensors="pt")
        file = out / "image.sft"
        run(blip2, "trace", PICTURE, "--model", out, "--out", file, "--quiet")
        got = matching(model, load_file(file)["pixel_values"], tokens["input_ids"], tokens["attention_mask"])
        difference = (got[0] - torch.tensor(line["itm"]["logits"])).abs().max().item()
        return result(out, model, difference, f"{extra} tensors of heads that it lacks are left over")

    table.check("stage 1", "`blip2-train export`", OTHER, stage_1)

    def questions():
        """The answer's prompt without the question: transformers cannot give the Q-Former any."""
        config = json.loads((PARITY / "opt" / "config.json").read_text())
        config["qformer_config"]["vocab_size"] = 321
        (work / "config.json").write_text(json.dumps(config))
        opt = PARITY / "opt"
        head = (
            f'stage = "stage2"\n[model]\nconfig = "{work / "config.json"}"\nvision_from = "{opt}"\nlanguage_from = "{opt}"\n'
            f'bridge_from = ["{opt}"]\nqformer_tokenizer = "{PARITY / "itm"}"\nqformer_text_input = true\n'
            '[stage2]\ntask = "answer"\ntemplate = "Question: {} Answer:"'
        )
        out = train("vqa-run", head)
        model, extra, *_ = generates(out, QUESTIONS_ONLY)
        bert = transformers.AutoTokenizer.from_pretrained(out / "qformer_tokenizer")
        asked = bert(TEXT, return_tensors="pt")["input_ids"]
        # the pass with a question, by hand: tables, bidirectional Q-Former, projection of the query rows
        weights = load_file(out / "model.safetensors")
        words, places = weights["embeddings.word_embeddings.weight"], weights["embeddings.position_embeddings.weight"]
        file = out / "trace.sft"
        run(blip2, "trace", PICTURE, "--prompt", PROMPT, "--question", TEXT, "--model", out, "--out", file, "--quiet")
        numbers = load_file(file)
        with torch.no_grad():
            text = words[asked] + places[: asked.shape[1]]
            image = model.vision_model(numbers["pixel_values"]).last_hidden_state
            embeds = torch.cat([model.query_tokens, text], 1)
            count_ = model.query_tokens.shape[1]
            hidden = model.qformer(query_embeds=embeds, query_length=count_, encoder_hidden_states=image).last_hidden_state
            soft = model.language_projection(hidden[:, :count_])
        difference = (soft - numbers["language_projection"]).abs().max().item()
        return result(out, model, difference, f"{extra} tensors of the text branch are left over; its soft tokens are compared")

    table.check("stage 2, OPT, question in the Q-Former", "`blip2-train export`", OTHER, questions)

    def language():
        opt = PARITY / "opt"
        texts = work / "texts.txt"
        texts.write_text("a red house\nfruit on the table\n" * 40)
        recipe = work / "lm.toml"
        recipe.write_text(
            f'stage = "language_model"\n[model]\ninit = "random"\ntokenizer = "{opt}"\n[model.config]\nmodel_type = "opt"\n'
            "vocab_size = 372\nhidden_size = 32\nnum_hidden_layers = 1\nffn_dim = 48\nnum_attention_heads = 2\n"
            f'max_position_embeddings = 64\n[data]\nmax_txt_len = 24\n[[data.train]]\npath = "{texts}"\n{RUN.format(train="")}'
        )
        run(trainer, "train", recipe, "--out", work / "lm")
        out = work / "lm-export"
        run(trainer, "export", work / "lm", "--out", out)
        model, _ = load(out)
        # inside a BLIP-2 checkpoint its numbers are those of `blip2`
        head = f'stage = "stage2"\n[model]\nopt_model = "{out}"\nlanguage_from = "{out}"\nvision_from = "{opt}"\n'
        config = json.loads((opt / "config.json").read_text())
        del config["text_config"]
        (work / "bridge.json").write_text(json.dumps(config))
        whole = train("on-lm", head + f'config = "{work / "bridge.json"}"\ninit = "random"')
        numbers = trace(whole)
        tokens = transformers.AutoTokenizer.from_pretrained(out)(PROMPT, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            words = model.get_input_embeddings()(tokens)
            got = model(inputs_embeds=torch.cat([numbers["language_projection"], words], 1)).logits[:, -1]
        return result(out, model, (got - numbers["logits"]).abs().max().item())

    table.check("language model", "`blip2-train export`", OTHER, language)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", type=Path, default=TESTS.parent / "target" / "release")
    commands = parser.parse_args().commands
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.logging.set_verbosity_error()
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        converted(table, commands / "blip2", work)
        exported(table, commands / "blip2", commands / "blip2-train", work)
    table.print()
    print(f"\ntorch {torch.__version__}, transformers {transformers.__version__}")
    sys.exit(table.failed)


if __name__ == "__main__":
    main()
