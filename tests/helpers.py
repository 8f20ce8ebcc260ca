"""What several test files compare and build."""

import nbformat
import torch
from nbformat import v4


def weights(module):
    """All weights of a network in one row."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def everything(state):
    """All tensors that a run depends on, by name."""
    tensors = {}
    for role, module in state.modules().items():
        tensors |= {f"{role}.{name}": t.clone() for name, t in module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{name}": t.clone() for name, t in moments.items()}
    return tensors


def assert_identical(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def write_notebook(path, parameters, *sources):
    """Write a notebook whose first code cell holds the parameters."""
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path
