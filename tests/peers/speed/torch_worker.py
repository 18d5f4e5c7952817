"""The peer's side of `run.py`: transformers on torch, one task per line of standard input.

    python torch_worker.py FOLDER DTYPE [DEVICE]   (f32, bf16, or bf16-compile: the image encoder through torch.compile)
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Blip2ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures/gen"))
import lavis_losses
import lavis_reference

TEXT = [2, 45, 5, 9, 12, 7, 33, 21]


DEVICE = sys.argv[3] if len(sys.argv) > 3 else "cpu"
torch.set_default_device(DEVICE)


def noise(*shape):
    n = int(np.prod(shape))
    values = (np.arange(n, dtype=np.uint64) * 7919 % 2003).astype(np.float32) / np.float32(1001.5) - 1
    return torch.from_numpy(values.reshape(shape)).to(DEVICE)


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class Worker:
    def __init__(self, folder, dtype):
        self.folder, self.dtype = folder, dtype
        self.model = self.load()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.learner = False
        self.stage1 = None

    def load(self):
        model = Blip2ForConditionalGeneration.from_pretrained(self.folder, dtype=self.dtype)
        return model.eval().to(DEVICE)

    def pixels(self, batch):
        side = self.model.config.vision_config.image_size
        return noise(batch, 3, side, side).to(self.dtype)

    def tokens(self, batch):
        """Shape of what the encoder makes of pictures."""
        vision = self.model.config.vision_config
        return batch, (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size

    @property
    def language(self):
        return self.model.language_model

    def soft(self, tokens):
        queries = self.model.query_tokens.expand(tokens.shape[0], -1, -1)
        out = self.model.qformer(query_embeds=queries, encoder_hidden_states=tokens.float(), return_dict=True)
        return self.model.language_projection(out.last_hidden_state.to(self.model.language_projection.weight.dtype))

    def generate(self, embeds, tokens, beams):
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        return self.language.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            num_beams=beams,
            do_sample=False,
            early_stopping=False,
        )

    def run(self, task, batch, tokens, beams, image):
        if task == "train":
            return self.train(batch)
        if task == "stage1":
            return self.pretrain(batch)
        with torch.inference_mode():
            if task == "vision":
                self.model.vision_model(self.pixels(batch))
            elif task == "qformer":
                self.soft(noise(*self.tokens(batch)))
            elif task == "generate":
                words = self.language.get_input_embeddings()(torch.tensor([TEXT] * batch))
                soft = noise(batch, self.model.config.num_query_tokens, words.shape[-1]).to(words.dtype)
                self.generate(torch.cat([soft, words], 1), tokens, beams)
            elif task == "caption":
                picture = Image.open(image).convert("RGB")
                inputs = self.processor(images=picture, text="a photo of", return_tensors="pt").to(DEVICE)
                inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
                out = self.model.generate(
                    **inputs, max_new_tokens=tokens, min_new_tokens=tokens, num_beams=beams, do_sample=False
                )
                self.processor.batch_decode(out, skip_special_tokens=True)
            elif task == "load":
                self.load()
            else:
                raise ValueError(task)

    def pretrain(self, batch):
        """Stage 1 from stored features: contrast, matching, generation, gradients of all that trains."""
        config, qformer = self.model.config, self.model.config.qformer_config
        if self.stage1 is None:
            sizes = dict(width=qformer.hidden_size, heads=qformer.num_attention_heads, hidden=qformer.intermediate_size)
            sizes |= dict(layers=qformer.num_hidden_layers, vocab=qformer.vocab_size)
            sizes |= dict(positions=qformer.max_position_embeddings)
            sizes |= dict(queries=config.num_query_tokens, shared=config.image_text_hidden_size)
            self.stage1 = lavis_reference.Stage1(None, config.vision_config.hidden_size, **sizes)
            for tensor in self.stage1.parameters():
                torch.nn.init.normal_(tensor, std=0.02) if tensor.dim() > 1 else None
        ids = torch.tensor([[101, *range(2000, 2014), 102]] * batch)
        order = torch.arange(batch)
        negatives = (order.roll(1)[None], order.roll(2)[None])
        out = lavis_losses.stage1(
            self.stage1, noise(*self.tokens(batch)), ids, torch.ones_like(ids), qformer.vocab_size - 1, 0, negatives=negatives
        )
        self.stage1.zero_grad(set_to_none=True)
        (out["itc"] + out["itm"] + out["itg"]).sum().backward()

    def train(self, batch):
        if not self.learner:
            self.model.requires_grad_(False)
            for part in (self.model.qformer, self.model.language_projection):
                part.requires_grad_(True)
            self.model.query_tokens.requires_grad_(True)
            self.learner = True
        with torch.no_grad():
            tokens = self.model.vision_model(self.pixels(batch)).last_hidden_state
        soft = self.soft(tokens)
        ids = torch.tensor([TEXT] * batch)
        words = self.language.get_input_embeddings()(ids)
        embeds = torch.cat([soft.to(words.dtype), words], 1)
        logits = self.language(inputs_embeds=embeds).logits[:, soft.shape[1] - 1 : -1].float()
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids.reshape(-1))
        self.model.zero_grad(set_to_none=True)
        loss.backward()


def main():
    name, _, compiled = sys.argv[2].partition("-")
    folder, dtype = sys.argv[1], {"f32": torch.float32, "bf16": torch.bfloat16}[name]
    start = time.perf_counter()
    worker = Worker(folder, dtype)
    if compiled:
        worker.model.vision_model = torch.compile(worker.model.vision_model)
    wait()
    print(json.dumps({"load_ms": (time.perf_counter() - start) * 1e3}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(job.get("repeat", 1)):
            worker.run(job["task"], job.get("batch", 1), job.get("tokens", 1), job.get("beams", 1), job.get("image"))
        wait()
        answer = {
            "wall_ms": (time.perf_counter() - start) * 1e3,
            "cpu_ms": (time.process_time() - cpu) * 1e3,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
