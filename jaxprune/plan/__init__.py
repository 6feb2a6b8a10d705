"""What a config would do on a TPU slice, found by compiling it for that slice where no TPU is."""
