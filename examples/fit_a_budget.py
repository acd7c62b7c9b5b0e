"""Scales a backbone to the MACs of another one, and builds what is found."""

import transom

budget = transom.count("swin_t", trace=False).macs
found = transom.fit("pale_t", macs=budget)
notation = found[0]["backbone"]
print(notation, f"{found[0]['error_%']:+.2f}%")

model = transom.create(notation)
print(sum(parameter.numel() for parameter in model.parameters()), "parameters")

frame = transom.compare("swin_t", notation).to_frame()
print(frame[["model", "params", "macs"]].to_string(index=False))
