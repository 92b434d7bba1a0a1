"""Ollama's API under /api, for the tools that speak it."""

from gateway.doors import Door
from gateway.ollama import models, text

DOORS: tuple[Door, ...] = (*text.DOORS, *models.DOORS)
