"""Three ways to run one ``TrainingSpec``: rendering of objects and reading of them; pure functions."""
