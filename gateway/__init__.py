"""HTTP in, HTTP out: checks what callers say, makes jobs of it, and hands out what the runners give back."""

from gateway.options import GatewayOptions
from gateway.service import Gateway, open_doors

__all__ = ["Gateway", "GatewayOptions", "open_doors"]
