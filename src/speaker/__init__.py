"""From speaker embeddings to decisions: back ends that score embeddings, enrollment, thresholds and error rates."""
