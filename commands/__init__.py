"""The commands of `triptych`, a file each; none imports torch, so that each starts at once."""
