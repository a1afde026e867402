"""Builds the embedded model: a small decoder trained so that its sub-layers can be skipped.

python -m offline.demo tokenizer   text of the five domains -> a 4096-token byte-level BPE
python -m offline.demo train       documents -> checkpoint (resumable)
python -m offline.demo export      checkpoint -> a Hugging Face folder that the server serves
"""
