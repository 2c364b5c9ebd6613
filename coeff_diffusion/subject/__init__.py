"""A subject: what was learned, where it came from, and its file. Needs torch and safetensors alone."""
