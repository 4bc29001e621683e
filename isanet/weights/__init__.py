"""Files, bytes and tensors of checkpoints; never a network.

In: names in weights.json, addresses, untrusted files. Out: entries of the manifest, verified files in the cache, state
dicts by the names of `isanet.ISANet`, and the bytes of safetensors files.

`manifest` says what was released, `choosing` filters and recommends. `download` fetches one file (`http`, `partfile`,
`url`), `cache` keeps it. `checkpoint` reads and writes (`torchfile`, `zipreader`, `paddlefile`; both read pickles by
`pickles`), `convert` maps the names of tensors. `hub` exchanges model folders with the Hugging Face Hub.

Nothing is re-exported: the manifest and the cache need no torch, so `isanet list` answers at once.
"""
