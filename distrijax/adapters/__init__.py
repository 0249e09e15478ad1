"""LoRA and its relatives: small files that change the weights of a model.

`names` tells the families of names apart, `others` what is no adapter of the model, and `kinds` has a formula for each
kind of adapter; `files` reads files with them. `chosen` keeps which adapters are active, `merge` changes the weights.
"""
