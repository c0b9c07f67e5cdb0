"""Tiny transformers of random weights, with a batch each."""

from __future__ import annotations

import torch
import transformers as hf

# What each model is adapted at, and the method that its own tests use: each PEFT type at least once.
TARGETS = {
    "BERT": "all-linear",
    "Llama": "all-linear",
    "GPT2": "all-linear",
    "T5": ["q", "v", "wi", "wo"],
    "ViT": "all-linear",
    "ConvNeXt": r".*\.(dwconv|pwconv1|pwconv2|patch_embeddings)",
}
METHOD_OF = {
    "BERT": "BOFT",
    "Llama": "HRA-odd",
    "GPT2": "OFT",
    "T5": "circulant",
    "ViT": "FLoRA",
    "ConvNeXt": "FLoRA",
}


def tiny(name: str, layers: int = 1) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model in eval mode, and a batch of two with labels."""
    torch.manual_seed(0)
    ids = torch.arange(14).reshape(2, 7) % 11 + 2
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 24}
    heads = {"num_labels": 3}
    image = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 2])}
    if name == "BERT":
        config = hf.BertConfig(vocab_size=31, max_position_embeddings=16, **sizes, **heads)
        return hf.BertForSequenceClassification(config).eval(), {**text, "labels": torch.tensor([0, 2])}
    if name == "Llama":
        config = hf.LlamaConfig(vocab_size=31, max_position_embeddings=16, num_key_value_heads=1, **sizes)
        return hf.LlamaForCausalLM(config).eval(), {**text, "labels": ids}
    if name == "GPT2":
        config = hf.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=layers, n_head=2, n_inner=24)
        return hf.GPT2LMHeadModel(config).eval(), {**text, "labels": ids}
    if name == "T5":
        config = hf.T5Config(
            vocab_size=31,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=layers,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
        return hf.T5ForConditionalGeneration(config).eval(), {**text, "labels": ids[:, :5].contiguous()}
    if name == "ViT":
        config = hf.ViTConfig(image_size=8, patch_size=4, **sizes, **heads)
        return hf.ViTForImageClassification(config).eval(), image
    config = hf.ConvNextConfig(num_channels=3, patch_size=2, num_stages=2, hidden_sizes=[4, 8], depths=[1, 1], **heads)
    return hf.ConvNextForImageClassification(config).eval(), image


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor], **options) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch, **options).logits
