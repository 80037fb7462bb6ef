"""What transformers answers with the same weights."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


class ReferenceModel:
    """A tiny checkpoint in transformers, with the weights that an fp16 store rounds rounded."""

    def __init__(self, checkpoint: Path) -> None:
        torch.set_num_threads(1)        # more only wait for each other in a model this small
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if 'mlp' in name or 'embed_tokens' in name or 'lm_head' in name:
                    weight.copy_(weight.half().float())

    @torch.no_grad()
    def greedy(self, prompt: list[int], count: int) -> list[int]:
        tokens: list[int] = []
        inputs, cache = torch.tensor([prompt]), None
        for _ in range(count):
            output = self.model(inputs, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            tokens.append(int(output.logits[0, -1].argmax()))
            inputs = torch.tensor([[tokens[-1]]])
        return tokens
