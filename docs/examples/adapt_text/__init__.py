"""Parts of the demo ``adapt_text_classifier.py``: text (data, tsv), model, training (train) and reporting (report)."""
