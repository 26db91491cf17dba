"""What tests are made of: small checkpoints, references, recorders, recipes of pipelines."""
