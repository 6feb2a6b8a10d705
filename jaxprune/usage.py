"""What `jaxprune --help` says."""

USAGE = """\
usage: jaxprune COMMAND ...

Prune an encoder while it pre-trains, let it recover, fine-tune it, and measure what pruning did to transfer.

  demo [--model DIR] [--workdir DIR]                      the whole story in minutes, on text this machine has
  prepare  CONFIG.yaml --workdir DIR [--a.b value ...]    documents -> training examples
  pretrain CONFIG.yaml --workdir DIR [--a.b value ...]    pre-train, prune, recover
  finetune CONFIG.yaml --workdir DIR [--a.b value ...]    tasks x learning rates x seeds; a model per run, the best one
  predict  MODEL FILE [--out F.csv]                       label the texts of a file
  study    CONFIG.yaml --workdir DIR [--a.b value ...]    conditions x sparsities x tasks x seeds, and the report
  report   DIR [DIR ... --out DIR]                        the page of a run, of several side by side, of a study
  prune    SRC DST --sparsity 0.7 [--scope matrix]        one shot: Hugging Face directory in and out
  export   MODEL DIR --format sparse [--dtype int8]       smaller, or for another runtime: ONNX, OpenVINO, ...
  compact  SRC DST [--layers 0 2 4] [--vocabulary TEXT]   take out pruned heads and neurons, layers, unused pieces
  inspect  CKPT [--json]                                  sparsity per matrix and head, weights, memory
  diff     A B [--json]                                   mask distance, movement and cosine of two checkpoints
  check    DIR                                            is a workdir, data or a model as it was written
  doctor   [--workdir DIR]                                what a run would find on this machine
  plan     CONFIG.yaml --topology v5e-8 [--json]          memory, FLOPs, collectives, time and cost on a TPU slice

The same command again resumes; of pretrain and finetune, --from-scratch moves the old run away and begins anew.
--dry-run checks a config and its data, prints what would happen and writes nothing.
--quiet says nothing but results, warnings and errors.
`jaxprune COMMAND --help` lists every key. JAXPRUNE_TRACEBACK=1 shows where an error came from.
pretrain and finetune run on several hosts: the same command on each, with --distributed.
Exit codes: 0 done, 2 wrong input, 71 too little memory or too few open files, 74 the disk is full or fails, 75 stopped
and saved, 76 a peer process was lost, 77 diverged, 78 no readable checkpoint, 79 no step for too long.
"""
