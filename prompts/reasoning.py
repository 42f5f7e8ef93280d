"""The tags around a model's reasoning, which its chat template writes or searches for. Knows no messages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningTags:
    """The texts before and after the reasoning."""

    opening: str
    closing: str

    def is_open(self, prompt: str) -> bool:
        """Whether a rendered prompt ends inside an open tag."""
        return prompt.rstrip().endswith(self.opening)


_TAGS = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<longcat_think>", "</longcat_think>"),
    ReasoningTags("<|think:start|>", "<|think:end|>"),
    ReasoningTags("<|channel>thought", "<channel|>"),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningTags("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
)


def find_reasoning(literals: str) -> ReasoningTags | None:
    """Return the tags among the texts of a template; None: the model does not reason."""
    return next((tags for tags in _TAGS if tags.opening in literals or tags.closing in literals), None)
