"""The paper's ablations (its Table 2, Table 4 and section 5.3) and two of its open questions, on any model and data.

One module per study lists its rows as jobs; ``run`` measures those that are missing and keeps every one at once.
"""
