"""Bytes over loopback of gradients of 9 M parameters, fp32 and bf16; 10 steps after 2."""
import os, sys, warnings, torch, lightning.pytorch as pl
from pathlib import Path
from torch.utils.data import DataLoader
from sdr_lightning.training.distributed.strategies import named_strategy
from tests.training.ranks import main
from tests.training.student import trainer
def lo(): return int(next(l for l in open("/proc/net/dev") if "lo:" in l).split()[1])
class M(pl.LightningModule):
    def __init__(s):
        super().__init__(); torch.manual_seed(0); s.l=torch.nn.Linear(3000,3000); s.n=0
    def training_step(s,b,i):
        if i==2: s.begin=lo()
        if i==12: s.end=lo()
        return s.l(b).square().mean()
    def configure_optimizers(s): return torch.optim.SGD(s.parameters(),1e-3)
def one_rank(rank, folder, size, runs):
    os.environ["LOCAL_RANK"]=str(rank); warnings.simplefilter("ignore")
    data=DataLoader(torch.randn(26,3000).add(rank), batch_size=2, collate_fn=torch.stack)
    for r in runs:
        m=M(); trainer(strategy=named_strategy(r),devices=size,max_epochs=1).fit(m,data)
        if rank==0: print(r, (m.end-m.begin)/10/1e6, "MB a step", flush=True)
if __name__=="__main__": sys.exit(main(sys.argv[1:], one_rank))
