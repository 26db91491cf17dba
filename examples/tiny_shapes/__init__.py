"""The pieces of `train_tiny_shapes.py`: scenes, drawing, captions, trainings and the folder."""
