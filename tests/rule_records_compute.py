"""Records of operators that compute: element by element, contractions, convolutions, normalisations, reductions."""

from __future__ import annotations

from rule_table import Record, absent, adder, g, k, w, x

RECORDS: list[Record] = []
add = adder(RECORDS)

# ---- element by element
add(
    "Abs Atan Asinh Ceil Cos Elu Erf Exp Floor HardSigmoid HardSwish IsInf IsNaN LeakyRelu Neg Relu Round Selu Celu "
    "Shrink Sigmoid Sign Sin Softplus Softsign Tanh ThresholdedRelu Sinh Cosh Clip",
    [x(2, 4, 3)],
    "abc->abc",
)
add("Acos Asin Atanh Tan", [x(2, 4, 3, of="unit")], "abc->abc")
add("Acosh Log Sqrt Reciprocal", [x(2, 4, 3, of="above1")], "abc->abc")
add("Gelu", [x(2, 4, 3)], "abc->abc", 20)
add("Mish", [x(2, 4, 3)], "abc->abc", 18)
add("Swish", [x(2, 4, 3)], "abc->abc", 24)
add("Not", [x(2, 4, 3, of="bool")], "abc->abc")
add("BitwiseNot", [x(2, 4, 3, of="int32")], "abc->abc", 18)
add("Identity", [x(2, 4, 3)], "abc->abc")
add("Cast", [x(2, 4, 3)], "abc->abc", to=6)
add("CastLike", [x(2, 4), x(3, 5, of="int32")], "ab,cd->ab")
add("Clip", [x(2, 4), w(), w()], "ab,,->ab")
add("Clip", [x(2, 4), absent, w(of="unit")], "ab,,->ab", 13)
add("Clip", [x(2, 4)], "ab->ab", 7, min=-1.0, max=1.0)
add("Dropout", [x(2, 4)], "ab->ab,ab", 12)
add("Dropout", [x(2, 4)], "ab->ab", 8)

add(
    "Add Sub Mul Max Min Mean Sum PRelu Greater GreaterOrEqual Less LessOrEqual",
    [x(2, 4, 3), x(2, 4, 3)],
    "abc,abc->abc",
)
add("Add Sub Mul Max Min Mean Sum PRelu Greater GreaterOrEqual Less LessOrEqual", [x(2, 4, 3), w(4, 1)], "abc,b_->abc")
add("Div Pow", [x(2, 4, 3, of="above1"), x(2, 4, 3, of="unit")], "abc,abc->abc")
add("Div Pow", [x(2, 4, 3, of="above1"), w(4, 3, of="unit")], "abc,bc->abc")
add("Mod", [x(2, 4, 3, of="above1"), x(4, 1, of="above1")], "abc,b_->abc", fmod=1)
add("Mod", [x(2, 4, of="int32"), k([3, 4, 5, 6], "int32")], "ab,b->ab")
add("Equal", [x(2, 4, 3, of="int32"), w(4, 1, of="int32")], "abc,b_->abc")
add("And Or Xor", [x(2, 4, 3, of="bool"), x(2, 4, 3, of="bool")], "abc,abc->abc")
add("And Or Xor", [x(2, 4, 3, of="bool"), w(4, 1, of="bool")], "abc,b_->abc")
add("BitShift", [x(2, 4, of="uint8"), k([1, 2, 3, 1], "uint8")], "ab,b->ab", direction="LEFT")
add("BitwiseAnd BitwiseOr BitwiseXor", [x(2, 4, 3, of="int32"), w(4, 1, of="int32")], "abc,b_->abc", 18)
add("Where", [x(2, 4, 3, of="bool"), x(4, 3), x(2, 1, 3)], "abc,bc,a_c->abc")
add("Where", [w(4, 1, of="bool"), x(2, 4, 3), w()], "b_,abc,->abc")
add("Sum Mean Max", [x(2, 4), x(2, 1), w(4), x(2, 4)], "ab,a_,b,ab->ab")

add("Add", [x(2, 4, 3), w()], "abc,->abc")
add("Add", [x(2, 4, 3), w(3)], "abc,c->abc")
add("Add", [w(2, 4, 3), x(2, 4, 3)], "abc,abc->abc")
add("Add", [x(2, 4, 1), x(3)], "ab_,c->abc")
add("Add", [x(2, 4, 1), w(3)], "ab_,_->ab_")
add("Add", [x(2, 4, 3), g(2, 4, 3)], "___,___->___")
add("Add", [x(2, 4, 3), g(4, 3)], "a__,__->a__")
add("Add", [x(2, 4, 3), x(2, 4, 3, on="1")], "_b_,_b_->_b_")
add("Add", [x(2, (4, 3)), w(3)], "n_d,d->n_d", units=5)
add("Add", [x(2, (4, 3)), w(4, 3)], "n_d,_d->n_d", units=14)
add("Add", [x(2, (4, 3)), w(4, 1)], "n_d,__->n_d", units=14)
add("Add", [x(2, (4, 3)), w(4, 1)], "nh_,h_->nh_", policy="whole", units=6)
add("Add", [x(2, (4, 3)), x(2, 4, 1)], "n_d,n__->n_d", units=14)
add("Add", [x(2, (4, 3)), x(2, 4, 1)], "nh_,nh_->nh_", policy="whole", units=6)
add("Add", [x(2, (4, 3)), x(2, 1, 3)], "n_d,n_d->n_d", units=5)
add("Add", [x(2, (4, 3)), x(2, (4, 3))], "n_d,n_d->n_d", units=14)
add("Add", [x(2, (4, 3)), x(2, 4, 3)], "n_d,n_d->n_d", units=5)
add("Add", [x(2, (4, 3)), g(2, 4, 3)], "___,___->___")
add("Add", [x(2, (4, 3)), g(4, 1)], "n_d,__->n_d", units=14)
add("Add", [x(2, (4, 3)), g(4, 1)], "n__,__->n__", policy="whole")
add("Add", [x((2, 3), 4), x(2, (3, 4))], "_b_,_b_->_b_")
add("Where", [g(4, 1, of="bool"), x(2, 4, 3), x(2, 4, 3)], "__,a_c,a_c->a_c")

add("Add Mul", [x(2, 4)], "ab->ab", build=lambda net, a: [net("Mul", net("Add", a, a), a)])

# ---- contractions
add("Gemm", [x(4, 8), w(8, 6), w(6)], "mK,Kn,n->mn")
add("Gemm", [x(8, 4), w(8, 6), w(1, 6)], "Km,Kn,_n->mn", transA=1)
add("Gemm", [x(4, 8), w(6, 8), w(4, 1)], "mK,nK,m_->mn", transB=1)
add("Gemm", [x(8, 4), w(6, 8), w(4, 6)], "Km,nK,mn->mn", transA=1, transB=1, alpha=0.5, beta=2.0)
add("Gemm", [x(4, 8), x(8, 6), w()], "mK,Kn,->mn")
add("Gemm", [x(4, 8), w(8, 6)], "mK,Kn->mn")
add("Gemm", [w(4, 8), x(8, 6)], "mK,Kn->mn")
add("Gemm", [x(4, 8), w(8, 6), g(6)], "mK,K_,_->m_")
add("Gemm", [x(4, 8), w(8, 6), x(6)], "mK,Kn,n->mn")
add("Gemm", [x((4, 3)), w(3, 6)], "_K,Kn->_n", units=3 + 6)
add("Gemm", [x((4, 3)), w(4, 6)], "_m,_n->mn", units=3 + 6, transA=1)
add("MatMul", [x(8), w(8, 6)], "K,Kn->n")
add("MatMul", [x(5, 8), w(8)], "mK,K->m")
add("MatMul", [x(8), x(8)], "K,K->")
add("MatMul", [x(8), x(2, 8, 6)], "K,bKn->bn")
add("MatMul", [x(2, 5, 8), x(8)], "bmK,K->bm")
add("MatMul", [x(2, 5, 8), w(8, 6)], "bmK,Kn->bmn")
add("MatMul", [w(5, 8), x(2, 8, 6)], "mK,bKn->bmn")
add("MatMul", [x(2, 1, 5, 8), x(3, 8, 6)], "a_mK,bKn->abmn")
add("MatMul", [x(2, 3, 5, 8), w(3, 8, 6)], "abmK,bKn->abmn")
add("MatMul", [x(2, 5, 8), x(2, 8, 6)], "bmK,bKn->bmn")
add("MatMul", [x(2, 5, 8), g(8, 6)], "bm_,__->bm_")
add("MatMul", [x(2, 5, (4, 3)), w(3, 6)], "ab_D,Dn->ab_n", units=2 + 5 + 3 + 6)
add("MatMul", [w(4, 6, 3), x((4, 3), 5)], "_mK,_Kn->_mn", units=12 + 6 + 5)
add("MatMul", [w(4, 6, 3), x((4, 3), 5)], "_mK,_Kn->_mn", policy="aligned", units=3 + 6 + 5)
add("MatMul", [w(4, 6, 3), x((4, 3), 5)], "hm_,h_n->hmn", policy="whole", units=4 + 6 + 5)
add("MatMul", [x((4, 3), 5), w(5, 6)], "_bK,Kn->_bn", units=12 + 5 + 6)
add("MatMul", [x((4, 3), 5), w(5, 6)], "b_K,Kn->b_n", policy="whole", units=4 + 5 + 6)
add("MatMul", [x(2, 5, 8), w(1, 8, 6)], "bmK,_Kn->bmn")
add("MatMul", [x(4, 4)], "KK->KK", units=4, build=lambda net, a: [net("MatMul", a, a)])
add("MatMul", [x(2, 5), w(5, 5)], "aK,KK->aK", build=lambda net, a, b: [net("MatMul", net("MatMul", a, b), b)])
add("Einsum", [x(2, 5, 8), w(8, 6)], "bmK,Kn->bmn", equation="bij,jk->bik")
add("Einsum", [x(5, 8), w(8, 6)], "mK,Kn->mn", equation="ij, jk")
add("Einsum", [x(2, 5, 8), w(8, 6)], "bmK,Kn->bmn", equation="...ij,jk->...ik")
add("Einsum", [x(2, 5, 8), w(8)], "abc,c->abc", equation="...d,d->...d")
add("Einsum", [x(2, 5), w(5, 8), w(8, 3)], "aB,B_,_d->ad", equation="bi,ij,jk->bk")
add("Einsum", [x(2, 5, 8)], "abc->cab", equation="xYz->zxY")
add("Einsum", [x(2, 5, 8)], "aBc->ca", equation="bij->jb")
add("Einsum", [x(4), x(5)], "a,b->ab", equation="i,j->ij")
add("Einsum", [x(2, 4, 3), x(2, 4, 3)], "abc,abc->cba", equation="ijk,ijk->kji")
add("Einsum", [x(2, 3, 5, 4), x(2, 3, 6, 4)], "bhqD,bhkD->bhqk", equation="bhqd,bhkd->bhqk")
add("Einsum", [x(2, 5, (4, 3)), x(2, 6, (4, 3))], "bq_D,bk_D->b_qk", equation="bqhd,bkhd->bhqk", units=2 + 5 + 6 + 12)
add(
    "Einsum",
    [x(2, 5, (4, 3)), x(2, 6, (4, 3))],
    "bqh_,bkh_->bhqk",
    policy="whole",
    equation="bqhd,bkhd->bhqk",
    units=2 + 5 + 6 + 4,
)
add("Einsum", [x(2, 5, (4, 3))], "bq_D->bq_", units=2 + 5 + 12, equation="bqhd->bqh")
add("Einsum", [x(2, 5, (4, 3))], "bq_d->bqd", units=2 + 5 + 3, equation="bqhd->bqd")
add("Einsum", [x(2, 5, (4, 3))], "bq_d->bdq_", units=2 + 5 + 3, equation="bqhd->bdqh")
add("Einsum", [x(2, 3, 5, 4), x(2, 3, 5, 4)], "BHQD,BHQD->", equation="bhqd,bhqd->")
add("Einsum", [x(2, 3, 5, 4), x(3, 4)], "bhqD,hD->bhq", equation="bhqd,hd->bhq")
add("Einsum", [x(4, 4)], "__->_", equation="ii->i", barrier="takes a diagonal")

# ---- convolutions
add("Conv", [x(2, 4, 5, 5), w(6, 4, 3, 3), w(6)], "nC__,oC__,o->no__", pads=[1] * 4)
add("Conv", [x(2, 4, 5, 5), w(6, 4, 3, 3)], "nC__,oC__->no__", strides=[2, 2], auto_pad="SAME_UPPER")
add("Conv", [x(2, 4, 7), w(6, 4, 3), w(6)], "nC_,oC_,o->no_")
add("Conv", [x(1, 4, 3, 3, 3), w(6, 4, 2, 2, 2)], "_C___,oC___->_o___")
add("Conv", [x(2, 4, 5, 5), x(6, 4, 3, 3)], "nC__,oC__->no__")
add("Conv", [x(2, 4, 5, 5), g(6, 4, 3, 3)], "n___,____->n___")
add("Conv", [g(2, 4, 5, 5), w(6, 4, 3, 3), w(6)], "____,o___,o->_o__")
add("Conv", [x(2, (4, 3), 5), w(6, 4, 3, 5)], "nC__,oC__->no__", units=2 + 4 + 6)
add("Conv", [x(2, 8, 5, 5), w(6, 4, 3, 3), w(6)], "nC__,oC__,o->no__", group=2)
add("Conv", [x(2, 8, 5, 5), w(6, 4, 3, 3), w(6)], "nC__,oC__,o->no__", policy="aligned", units=2 + 4 + 3, group=2)
add("Conv", [x(2, 8, 5, 5), w(8, 2, 3, 3), w(8)], "nc__,c___,c->nc__", policy="whole", units=2 + 4, group=4)
add("Conv", [x(2, 8, 7), w(8, 4, 3)], "nC_,oC_->no_", group=2)
add("Conv", [x(1, 8, 3, 3, 3), w(8, 2, 2, 2, 2)], "_C___,oC___->_o___", group=4)
add("Conv", [x(2, 6, 5, 5), w(6, 1, 3, 3), w(6)], "nc__,c___,c->nc__", group=6)
add("Conv", [x(2, 6, 5, 5), w(12, 1, 3, 3), w(12)], "nc__,c___,c->nc__", group=6)
add("Conv", [x(2, 6, 7), w(6, 1, 3)], "nc_,c__->nc_", group=6, policy="aligned")
add("Conv", [x(2, 8, 5, 5), w(4, 2, 3, 3), w(4)], "nc__,c___,c->nc__", units=2 + 4, group=4)
add("Conv", [g(2, 4, 5, 5), w(8, 2, 3, 3), w(8)], "____,o___,o->_o__", group=2)
add("Conv", [g(2, 4, 5, 5), w(8, 1, 3, 3), w(8)], "____,o___,o->_o__", group=4)
add("Conv", [g(2, 4, 5, 5), w(4, 1, 3, 3), w(4)], "____,____,_->____", group=4)
add("Conv", [x(2, 8, 5, 5), x(6, 4, 3, 3)], "nC__,oC__->no__", group=2, units=2 + 4 + 6)
add(
    "Conv",
    [x(2, 8, 5, 5), w(8, 4, 3, 3)],
    "nC__,CC__->nC__",
    units=2 + 8,
    build=lambda net, a, b: [net("Conv", net("Conv", a, b, group=2, pads=[1] * 4), b, group=2)],
)
add("Conv", [x(2, 8, 5, 5), g(6, 4, 3, 3)], "n___,____->n___", group=2)
add("Conv", [x(2, 8, 5, 5), x(6, 4, 3, 3, on="0")], "n___,o___->no__", group=2)
add("Conv", [g(2, 8, 5, 5), x(6, 4, 3, 3)], "____,o___->_o__", group=2)
add("Conv", [x(2, 8, 5, 5), w(6, 4, 3, 3), g(6)], "nC__,_C__,_->n___", group=2)
add("Conv", [x(2, 8, 5, 5), w(6, 4, 3, 3), g(6)], "nC__,_C__,_->n___", policy="aligned", units=6, group=2)
add("Conv", [x((2, 8), 5, 5), w(6, 4, 3, 3)], "_C__,oC__->_o__", units=8 + 6, group=2)
add("ConvTranspose", [x(2, 4, 5, 5), w(4, 6, 2, 2), w(6)], "nC__,Co__,o->no__", strides=[2, 2])
add("ConvTranspose", [x(2, 4, 5), w(4, 6, 2), w(6)], "nC_,Co_,o->no_")
add("ConvTranspose", [x(2, 4, 3, 3, 3), w(4, 6, 2, 2, 2)], "nC___,Co___->no___")
add("ConvTranspose", [x(2, 8, 5, 5), w(8, 3, 2, 2), w(6)], "nC__,Co__,o->no__", units=2 + 8 + 6, group=2)
add(
    "ConvTranspose",
    [x(2, 8, 5, 5), w(8, 3, 2, 2), w(6)],
    "nC__,Co__,o->no__",
    policy="aligned",
    units=2 + 4 + 3,
    group=2,
)
add("ConvTranspose", [x(2, 8, 5, 5), w(8, 3, 2, 2), w(12)], "nc__,c___,c->nc__", policy="whole", units=2 + 4, group=4)
add("ConvTranspose", [x(2, 6, 5, 5), w(6, 1, 2, 2), w(6)], "nc__,c___,c->nc__", group=6)
add("ConvTranspose", [x(2, 6, 5, 5), w(6, 2, 2, 2), w(12)], "nc__,c___,c->nc__", group=6)
add("ConvTranspose", [g(2, 4, 5, 5), w(4, 3, 2, 2), w(6)], "____,_o__,o->_o__", units=6, group=2)
add("ConvTranspose", [g(2, 4, 5, 5), w(4, 6, 2, 2), w(6)], "____,_o__,o->_o__")

# ---- normalisation
add("BatchNormalization", [x(2, 4, 3, 3), w(4), w(4), w(4), w(4, of="unit")], "nchw,c,c,c,c->nchw")
add("BatchNormalization", [x(2, 4), w(4), w(4), w(4), w(4, of="unit")], "nc,c,c,c,c->nc", 9)
add("BatchNormalization", [x(2, 4, 5), w(4), w(4), x(4), x(4, of="unit")], "ncl,c,c,c,c->ncl")
add(
    "BatchNormalization",
    [x(2, 4, 3), w(4), w(4), w(4), w(4, of="unit")],
    "NcL,c,c,c,c->NcL",
    14,
    build=lambda net, *ins: net.many("BatchNormalization", 3, *ins, training_mode=1, epsilon=0.1)[:1],
)
add("BatchNormalization", [x(2, (4, 3)), w(4), w(4), w(4), w(4, of="unit")], "n_l,_,_,_,_->n_l", units=2 + 12)
add("BatchNormalization", [x((2, 4), 3, of="unit"), w(4), w(4), w(4), w(4, of="unit")], "_cl,c,c,c,c->_cl", units=4 + 3)
add("InstanceNormalization", [x(2, (4, 3)), w(4), w(4)], "n_L,_,_->n_L", units=2 + 12)
add("InstanceNormalization", [x(2, 4, 3, 5), w(4), w(4)], "ncHW,c,c->ncHW")
add("InstanceNormalization", [x(2, 4, 5), w(4), w(4)], "ncL,c,c->ncL", epsilon=0.1)
add("LayerNormalization", [x(2, 5, 8), w(8), w(8)], "abC,C,C->abC")
add("LayerNormalization", [x(2, 5, 8), w(8)], "abC,C->abC", epsilon=0.1)
add("LayerNormalization", [x(2, 5, 8), w(5, 8), w(5, 8)], "aBC,BC,BC->aBC", axis=1)
add("LayerNormalization", [x(2, 5, 8), w(8), w(8)], "___,_,_->___,___,___", barrier="statistics")
add("LayerNormalization", [x(2, (4, 3)), w(3), w(3)], "n_D,D,D->n_D", units=5)
add("LayerNormalization", [x(2, (4, 3)), w(4, 3)], "n_D,_D->n_D", units=14, axis=1)
add("LayerNormalization", [x(2, 5, 8), g(8)], "ab_,_->ab_")
add("RMSNormalization", [x(2, 5, 8), w(8)], "abC,C->abC", 23)
add("RMSNormalization", [x(2, 5, 8), w(5, 8)], "aBC,BC->aBC", 23, axis=-2, epsilon=0.1)
add("SimplifiedLayerNormalization", [x(2, 5, 8), w(8)], "abC,C->abC")
add("MeanVarianceNormalization", [x(2, 4, 3, 5, on="012")], "NcH_->NcH_")
add("MeanVarianceNormalization", [x(2, 4, 3, on="12")], "_Bc->_Bc", axes=[0, 1])
add("LpNormalization", [x(2, 4, 3)], "abC->abC")
add("LpNormalization", [x(2, 4, 3)], "aBc->aBc", axis=1, p=1)
add("Softmax LogSoftmax", [x(2, 4, 3)], "abC->abC")
add("Softmax LogSoftmax", [x(2, 4, 3)], "aBc->aBc", axis=-2)
add("Softmax LogSoftmax", [x(2, 4, 3)], "aBC->aBC", 11)
add("Softmax LogSoftmax", [x(2, 4, 3)], "abC->abC", 7, axis=2)
add("Softmax", [x(2, (4, 3))], "n_D->n_D", units=14)
add("Softmax", [x(2, (4, 3))], "n_d->n_d", units=5, axis=1)
add("Softmax", [x(2, (4, 3))], "n_D->n_D", 11, units=14, axis=1)
add("Hardmax", [x(2, 4, 3)], "ab_->ab_")
add("Hardmax", [x(2, 4, 3)], "a__->a__", 11)
add("Hardmax", [x(2, (4, 3))], "n_d->n_d", units=5, axis=1)
add("LRN", [x(2, 4, 3, 3)], "n_hw->n_hw", size=3)
add("LRN", [x(2, (4, 3), 3)], "n_hw->n_hw", units=2 + 3 + 3, size=3)
add("GroupNormalization", [x(2, 8, 3, 3), w(8), w(8)], "nC__,C,C->nC__", 21, num_groups=2)
add("GroupNormalization", [x(2, 8, 3), w(8), w(8)], "nC_,C,C->nC_", 21, policy="aligned", units=2 + 4, num_groups=2)
add("GroupNormalization", [x(2, 8, 3, 3), w(8), w(8)], "nc__,c,c->nc__", 21, policy="whole", units=2 + 4, num_groups=4)
add("GroupNormalization", [x(2, 4, 3, 3), w(4), w(4)], "nC__,C,C->nC__", 21, num_groups=1)
add("GroupNormalization", [x(2, 4, 3, 3), w(4), w(4)], "nc__,c,c->nc__", 21, num_groups=4)
add("GroupNormalization", [x(2, 8, 3, 3), w(8), g(8)], "n___,_,_->n___", 21, num_groups=4)
add("CumSum", [x(2, 4, 3), k(1)], "a_c,->a_c")
add("CumSum", [x(2, 4, 3), k(-1)], "ab_,->ab_", exclusive=1, reverse=1)
add("CumSum", [x(2, (4, 3)), k(1)], "n_d,->n_d", units=5)
add("CumSum", [x(2, 4, 3), g(1, of="one")], "___,_->___", barrier="computed at run time")
add("TopK", [x(2, 4, 3), k([2])], "ab_,_->ab_,ab_")
add("TopK", [x(2, 4, 3), k([2])], "a_c,_->a_c,a_c", axis=1, largest=0)
add("TopK", [x(2, (4, 3)), k([2])], "n_d,_->n_d,n_d", units=5, axis=1)
add("TopK", [x(2, (4, 3)), k([2])], "nh_,_->nh_,nh_", units=6)
add("TopK", [x(2, 4, 3)], "ab_->ab_,ab_", 9, k=2)
add("Trilu", [x(2, 4, 3)], "a__->a__")
add("Trilu", [x(3, 3), k(1)], "__,->__", upper=0)

# ---- pools and reductions
add("MaxPool AveragePool LpPool", [x(2, 4, 6, 6)], "nc__->nc__", kernel_shape=[2, 2], strides=[2, 2])
add("MaxPool AveragePool LpPool", [x(2, 4, 6)], "nc_->nc_", kernel_shape=[3], pads=[1, 1])
add("MaxPool AveragePool", [x(2, 4, 3, 3, 3)], "nc___->nc___", kernel_shape=[2, 2, 2])
add("GlobalMaxPool GlobalAveragePool GlobalLpPool", [x(2, 4, 3, 3)], "nc__->nc__")
add("MaxPool", [x(2, 4, 6, 6)], "____->____,____", barrier="positions", kernel_shape=[2, 2])
add("MaxPool", [x(2, (4, 3), 6)], "nc__->nc__", units=6, kernel_shape=[2, 2])

SUMS = "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare"
for op in [*SUMS.split(), "ReduceProd", "ReduceLogSum"]:
    of = "unit" if op in ("ReduceProd", "ReduceLogSum") else "real"
    add(op, [x(2, 4, 3, of=of)], "aBc->ac", 11, axes=[1], keepdims=0)
    add(op, [x(2, 4, 3, of=of)], "aBC->a__", 12, axes=[-1, 1])
    add(op, [x(2, 4, 3, of=of), k([1, 2])], "aBC,_->a", 18, keepdims=0)
    add(op, [x(2, 4, 3, of=of), k([-2])], "aBc,_->a_c", 18)
    add(op, [x(2, 4, 3, of=of)], "ABC->___", 18)
    add(op, [x(2, 4, 3, of=of)], "abc->abc", 18, noop_with_empty_axes=1)
add("ReduceSum", [x(2, 4, 3), k([1])], "aBc,_->a_c", 13)
add("ReduceMean", [x(2, 4, 3)], "aBc->a_c", 13, axes=[1])
add("ReduceSum ReduceMean", [x(2, 4, 3)], "ABC->", 11, keepdims=0)
add("ReduceMean ReduceMax", [x(2, (4, 3))], "n_D->n_", 13, units=14, axes=[-1], keepdims=0)
add("ReduceMean ReduceMax", [x(2, (4, 3))], "n_d->nd", 13, units=5, axes=[1], keepdims=0)
add("ReduceMean ReduceMax", [x(2, (4, 3))], "n_D->n", 13, units=14, axes=[1, 2], keepdims=0)
add("ReduceMax ReduceMin", [x(2, 4, of="int32")], "aB->a_", 13, axes=[1])
add("ReduceMax ReduceMin", [x(2, 4, of="uint8")], "aB->a_", 13, axes=[1])
add("ReduceMax ReduceMin", [x(2, 4, of="int64")], "aB->a_", 13, axes=[1])
add("ReduceMax ReduceMin", [x(2, 4, of="bool"), k([1])], "aB,_->a_", 20)
add("ReduceSum ReduceProd", [x(2, 4, of="int32")], "aB->a_", 12, axes=[1])
add("ReduceSum", [x(2, 4, 3), g(1, of="one")], "___,_->___", barrier="computed at run time")
add("ArgMax ArgMin", [x(2, 4, 3)], "a_c->a_c", axis=1)
add("ArgMax ArgMin", [x(2, 4, 3)], "ab_->ab", axis=-1, keepdims=0)
add("ArgMax", [x(2, (4, 3))], "n_d->nd", units=5, axis=1, keepdims=0)
add("ArgMax", [x(2, (4, 3))], "n_d->n_d", units=5, axis=1)
add("ArgMax", [x(2, (4, 3))], "nh_->nh", units=6, axis=2, keepdims=0)
