"""The sampling parameters of requests that name none: those of the model's generation_config.json.

They count on all routes but /generate, as in vLLM. `do_sample` false means greedy; true without a temperature
means 1, as in transformers 5.24. A wrong value is ignored with a line in the log, so it stops no model.
"""

import logging
from collections.abc import Mapping

from config import Settings
from prompts.model_files import read_config
from spool.sampling_params import NUMBER_FIELDS

NEUTRAL: Mapping[str, float] = {
    "temperature": 0,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
}

log = logging.getLogger(__name__)


def read_sampling_defaults(settings: Settings) -> dict[str, float]:
    """Return the values of `NEUTRAL`'s fields for requests that leave them out.

    Raises:
        TokenizerUnusable: generation_config.json is no JSON object.
    """
    if settings.sampling_defaults == "neutral":
        return dict(NEUTRAL)
    config = read_config(settings.model_dir / "generation_config.json")
    is_sampling = config.get("do_sample")
    found = {"temperature": 1.0 if is_sampling is True else 0.0}
    for name in NEUTRAL:
        if config.get(name) is None:
            continue
        try:
            found[name] = NUMBER_FIELDS[name].read(config[name])
        except ValueError as error:
            log.warning("generation_config.json: %s is ignored: it %s", name, error)
    if is_sampling is False:
        found["temperature"] = 0.0
    return {**NEUTRAL, **found}
