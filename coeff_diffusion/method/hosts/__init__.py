"""What subjects do inside other programs' UNets: those that descend from ComfyUI's, with its patches of attention."""
