"""Images in: files and shards (`images`, `sources`), training crops (`crops`), ground truth (`truth`,
`rgbd`, `benchmarks`), procedural `scenes`."""
