"""Drawing: subjects in a pipeline, when they act, and the one sampling path of the house."""
