"""Ollama's API under /api, for the tools that speak it."""

from gateway.doors import Door
from gateway.ollama import embeddings, models, text

DOORS: tuple[Door, ...] = (*text.DOORS, *embeddings.DOORS, *models.DOORS)
