"""What a run leaves behind: rows, tables, manifests, wavs and figures. The only writer of result files."""
