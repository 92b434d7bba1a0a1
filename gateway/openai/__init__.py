"""OpenAI's API under /v1, with the wire types of the `openai` package.

What its parameters cannot say (`loras`, `num_inference_steps`, `seed` of a picture ...) rides in `extra_body`
under our own names. A standard parameter that we have no meaning for is refused like any unknown field.
"""

from gateway.doors import Door
from gateway.openai import embeddings, images, models, speech, text

DOORS: tuple[Door, ...] = (*text.DOORS, *embeddings.DOORS, *images.DOORS, *speech.DOORS, *models.DOORS)
