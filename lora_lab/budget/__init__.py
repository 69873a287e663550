"""What a plan will cost: exact counts, and memory in closed form, against full fine-tuning.

Everything goes through one table of prices (`price_table`), linear in the ranks but for inputs that
become live when the first site reads them. `evaluate_price` turns {site: rank} into a `Budget`;
`static/savings_price.js` does the same in the browser while ranks are painted. Other methods put
their `MethodCost` into the same sum.

Memory is the peak of one training step as live tensor bytes: a fused optimizer, gradients freed
before each forward pass, SDPA attention. What an allocator or a CUDA library adds on top is not in
it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
