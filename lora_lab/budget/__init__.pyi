from .costs import Budget as Budget
from .costs import Memory as Memory
from .evaluate import evaluate_price as evaluate_price
from .forecast import budget as budget
from .optimizers import OPTIMIZERS as OPTIMIZERS
from .table import price_table as price_table
