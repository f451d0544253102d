"""Golden pairs: which answers are equal. The policies behind them are in docs/verify-math.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from selfcorrect.types import Verdict
from selfcorrect.verify.math import MathGrader
from selfcorrect.verify.math.decide import decide

EQUAL = r"""
(-\infty, -14) \cup (-3, \infty) ||| x < -14 \text{ or } x > -3
\{1,2,3\} \cup \{4,5\} ||| \{1,2,3,4,5\}
\emptyset ||| \{\}
\mathbb{R} \setminus \{1\} ||| (-\infty,1)\cup(1,\infty)
\log_{2}(8) ||| 3
\log_2 8 ||| 3
73 ||| 73 km/h
73 \text{ km/h} ||| 73 km/h
2m^2 ||| 2 m^2
73 ||| US\$73
73 ||| \$73/hour
18 ||| 18\text{ times}
\sin(\pi/2) ||| 1
e^{i\pi} ||| -1
\frac{\pi}{6} ||| \pi/6
\infty ||| \infty
-\infty ||| - \infty
x^2+2x+1 ||| (x+1)^2
\frac{x^2-1}{x-1} ||| x+1
2\sqrt{3} ||| \sqrt{12}
\frac{1}{\sqrt{2}} ||| \frac{\sqrt{2}}{2}
\sqrt[3]{-8} ||| -2
\frac{\sqrt{6}-\sqrt{2}}{4} ||| \sin 15^\circ
\cos 60^\circ ||| \frac12
\tan^{-1}(1) ||| \frac{\pi}{4}
\arctan 1 ||| \pi/4
2^{10} ||| 1024
10! ||| 3628800
\binom{5}{2} ||| 10
|{-3}| ||| 3
\lfloor 3.7 \rfloor ||| 3
3:4 ||| \frac{3}{4}
3:4 ||| 3 : 4
0.\overline{3} ||| \frac{1}{3}
0.1\overline{6} ||| 1/6
x \ge 2 ||| [2,\infty)
x \ge 2 ||| [2, +\infty)
-1 < x \le 3 ||| (-1,3]
-1 < x \le 3 ||| x \in (-1, 3]
x > 3 ||| 3 < x
y = 2x+3 ||| y = 3 + 2x
y = 2x+3 ||| 2x - y + 3 = 0
y=2x+3 ||| 2x+3
x=1,y=2 ||| (1,2)
(1,2) ||| x=1, y=2
x=1 \text{ and } y=2 ||| y=2, x=1
\begin{pmatrix}1\\2\end{pmatrix} ||| (1,2)
\begin{pmatrix}1\\2\end{pmatrix} ||| \begin{bmatrix} 1 \\ 2 \end{bmatrix}
\begin{pmatrix} \frac12 \\ 0.5 \end{pmatrix} ||| \begin{pmatrix} 0.5 \\ \frac{1}{2} \end{pmatrix}
\langle 1,2,3\rangle ||| (1,2,3)
\text{Monday} ||| monday
\text{Monday} ||| Monday
\text{(C)} ||| C
\text{(C)} ||| (C)
C ||| \text{C}
A,B,C ||| \text{A, B, C}
\text{A, B, C} ||| C, A, B
52_8 ||| 52_{8}
52_8 ||| 52_{\text{8}}
2B_{12} ||| 2B_{12}
\$32.50 ||| 32.50
\$32.50 ||| \$32.5
\$32.50 ||| 32.50 dollars
12\text{ cm} ||| 12
12 ||| 12\text{ cm}^2
12\text{ cm}^2 ||| 12 cm^2
12\text{ cm}^2 ||| 12\,\mathrm{cm}^2
12 \text{ square inches} ||| 12 \text{ in}^2
90^\circ ||| 90 degrees
90^\circ ||| 90°
10\% ||| 10
10\% ||| 0.1
10\% ||| \frac{1}{10}
3\frac12 ||| 3.5
3\frac12 ||| \frac{7}{2}
3\frac12 ||| 3 1/2
-3\frac12 ||| -3.5
1{,}234 ||| 1234
1,234,567 ||| 1234567
1 \pm \sqrt{2} ||| 1+\sqrt{2}, 1-\sqrt{2}
1 \pm \sqrt{2} ||| 1-\sqrt{2} \text{ or } 1+\sqrt{2}
\pm 3 ||| 3, -3
\pm 3 ||| \{-3, 3\}
x = \pm 3 ||| -3, 3
i ||| \sqrt{-1}
2+3i ||| 3i+2
\frac{1+i}{2} ||| \frac12 + \frac{i}{2}
\frac{1}{1+i} ||| \frac{1-i}{2}
(x-1)(x+1) ||| x^2-1
a^2b ||| b a^2
xy ||| yx
\frac{a}{b} ||| a/b
\dfrac{3x}{4} ||| \frac{3}{4}x
5 \times 10^{-3} ||| 0.005
1.2e3 ||| 1200
4:30 p.m. ||| 4:30 PM
\text{4:30 p.m.} ||| 4:30\text{ pm}
f(x) = x^2 ||| x^2
f(x)=x^2 ||| f(x) = x \cdot x
n^2 + n ||| n(n+1)
\sqrt{x^2+1} ||| (x^2+1)^{1/2}
\ln 2 ||| \log 2
e^{2} ||| e^2
\frac{7}{2} ||| 7/2
\text{Yes} ||| yes
\text{even} ||| \text{Even}.
2 \cdot 3^5 ||| 486
\sqrt{50} ||| 5\sqrt2
\frac{\sqrt3}{3} ||| \frac{1}{\sqrt{3}}
\sqrt{2+\sqrt3} ||| \frac{\sqrt6+\sqrt2}{2}
(2,3),(4,5) ||| (4,5),(2,3)
(2,3) \text{ and } (4,5) ||| (4,5),(2,3)
\{(2,3),(4,5)\} ||| (4,5),(2,3)
-x^2+4 ||| 4-x^2
x<-2 \text{ or } x>2 ||| (-\infty,-2)\cup(2,\infty)
2k\pi, k\in\mathbb{Z} ||| 2k\pi, k\in\mathbb{Z}
\frac{2}{3}\pi ||| \frac{2\pi}{3}
1.0 ||| 1
-0 ||| 0
007 ||| 7
\angle ABC = 30^\circ ||| 30
5\text{ million} ||| 5000000
5 ||| 5.
\frac{-1}{2} ||| -\frac{1}{2}
\frac{1}{-2} ||| -0.5
\sqrt{3}/2 ||| \frac{\sqrt{3}}{2}
x+y=5 ||| y=5-x
2\text{ hours} ||| 2\ \text{hours}
10^{100} ||| 10^{100}
2^{100} ||| 1267650600228229401496703205376
\left(-\infty, \frac{1}{2}\right] ||| (-\infty, 0.5]
\text{no solution} ||| no solution
\text{no real solutions} ||| \text{No real solutions}
16\text{ daps} ||| 16
19 \text{ and } 43 ||| 43, 19
7, -2, \text{ and } -5 ||| -5, -2, 7
\left\lfloor \frac{n}{2} \right\rfloor ||| \lfloor n/2 \rfloor
x^{\frac{1}{2}} ||| \sqrt{x}
|x-1| ||| |1-x|
\mathbf{2340} ||| 2340
42 ||| 42 \text{ apples}
42 ||| \textbf{42}
42 ||| \mathbf{42}
42 ||| **42**
42 ||| \color{red}{42}
42 ||| \underline{42}
42 ||| {42}
42 ||| 42.0
\frac{3}{4} ||| \frac34.
\frac{3}{4} ||| 75\%
\frac{3}{4} ||| $\frac{3}{4}$
0.5 ||| .5
3,4 ||| 3 and 4
3,4 ||| 4; 3
(3,4) ||| (3, 4)
(3,4) ||| \left(3,4\right)
\frac{a+b}{2} ||| (a+b)/2
\text{A} ||| A.
\frac{\log 3}{\log 2} ||| \log_2 3
\sin^2 x ||| 1-\cos^2 x
\sin 2x ||| 2\sin x\cos x
\cot x ||| \frac{\cos x}{\sin x}
4^{x} ||| 2^{2x}
x_1 = 2, x_2 = 3 ||| 2, 3
x_1 + x_2 ||| x_2 + x_1
a_n = 2n+1 ||| 2n+1
\frac{n(n+1)}{2} ||| \frac{n^2+n}{2}
1 ||| 1\%
0.335 ||| 33.5 pct
2.74 ||| 2,74
1000.99 ||| 1000,99
\text{four} ||| 4
\sqrt{2} ||| 1.41421356237
\frac{1}{12} ||| 0.0833333333333333
\frac{5\sqrt{42}}{27} ||| \frac{10\sqrt{10.5}}{27}
x < 1 ||| -x > -1
34x+45y-20z+100=0 ||| -34x-45y+20z-100=0
p=5,q=2;p=7,q=2 ||| (5,2),(7,2)
\frac{NO}{BO}=\frac{1}{\sqrt{6}} ||| \frac{1}{\sqrt{6}}
\frac{\sqrt{3}}{3} \approx 0.577 ||| \frac{\sqrt{3}}{3}
3 ||| 3s
0.0011_2 ||| 0.0011_{2}
x \neq 5 ||| x != 5
F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1} ||| F_n = \sum_{k=0}^{n-1} F_{n-k-1} F_k
\frac{1}{2} ||| \(\frac{1}{2}\)
\frac{1}{2} ||| \[ \frac{1}{2} \]
\frac{1}{2} ||| \frac{1}{2}\,
\frac{1}{2} ||| \displaystyle\frac{1}{2}
\frac{1}{2} ||| \frac12=0.5
\frac{1}{2} ||| \frac{1}{2} \approx 0.5
\frac{1}{2} ||| {\frac{1}{2}}
\frac{1}{2} ||| 2^{-1}
\frac{1}{2} ||| \dfrac{\;1\;}{2}
\sqrt{2} ||| 2^{1/2}
\sqrt{2} ||| 2^{\frac12}
\sqrt[3]{4} ||| 4^{1/3}
3\sqrt{13} ||| 3 \cdot \sqrt{13}
3\sqrt{13} ||| 3*sqrt(13)
\frac{3\pi}{4} ||| 3pi/4
\frac{3\pi}{4} ||| 0.75\pi
6 - 5i ||| 6-5 i
6 - 5i ||| -5i+6
(3, \frac{\pi}{2}) ||| (3, \pi/2)
(3, \frac{\pi}{2}) ||| \left(3,\,\tfrac{\pi}{2}\right)
\text{Evelyn} ||| Evelyn
\text{Evelyn} ||| \textbf{Evelyn}
\text{Evelyn} ||| \mathrm{Evelyn}
\text{Evelyn} ||| \text{evelyn}
\text{two lines} ||| two lines
p - q ||| p-q
x^3 - 4x ||| x(x-2)(x+2)
-1,0,1 ||| 0, 1, -1
-1,0,1 ||| \{-1,0,1\}
-1,0,1 ||| x=-1, x=0, x=1
-1,0,1 ||| x = -1, 0, 1
-1,0,1 ||| -1, 0, \text{ and } 1
-1,0,1 ||| $-1$, $0$, and $1$
-1,0,1 ||| x \in \{-1,0,1\}
x=5 ||| 5
x=5 ||| x=5.0
5 ||| n = 5
5 ||| 5\%
11\sqrt{2} ||| 11\sqrt{2} \text{ units}
15\text{ mph} ||| 15 mph
15 ||| 15 \text{ m/s}
15 ||| 15\ \mathrm{m/s}
15 ||| 15 \, \text{cm}^3
15 ||| 15 \,\text{cm}^{3}
15 ||| 15\text{ m}^2
15 ||| \$15
15 ||| 15 \text{ dollars}
15 ||| +15
70 \sqrt{2} ||| 70\sqrt{2} feet
(-\infty, 2] \cup [5, \infty) ||| (-\infty,2]\cup[5,+\infty)
(-\infty, 2] \cup [5, \infty) ||| x \le 2 \text{ or } x \ge 5
(-\infty, 2] \cup [5, \infty) ||| x \in (-\infty, 2] \cup [5, \infty)
[5, \infty) ||| x \geqslant 5
(0,\infty) ||| x>0
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ||| \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ||| \left[\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right]
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ||| \left(\begin{matrix} 1 & 2 \\ 3 & 4 \end{matrix}\right)
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ||| \begin{pmatrix}1&2\\3&4\\\end{pmatrix}
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} ||| \begin{pmatrix} -\frac{1}{3} \\ \frac{2}{3} \end{pmatrix}
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} ||| \mathbf{v} = \begin{pmatrix} -\frac{1}{3} \\ \frac{2}{3} \end{pmatrix}
4210_7 ||| 4210_{7}
4210_7 ||| (4210)_7
4210_7 ||| 4210_\text{seven}
y = -\frac{1}{2} x^2 + 4x - 6 ||| y=-0.5x^2+4x-6
2x + z - 5 = 0 ||| 2x+0y+z=5
49x^2 - 42xy + 9y^2 = 0 ||| 9y^2+49x^2-42xy=0
x^2 + y^2 = 13 ||| y^2 + x^2 = 13
\tan \theta = 2\theta ||| 2 \theta = \tan\theta
\frac{\pi r}{h+r} ||| \frac{r\pi}{r+h}
\frac{h^2}{m} ||| h^2/m
3 \sec \frac{1}{2} \theta ||| 3\sec(\theta/2)
\cos^2\alpha ||| (\cos \alpha)^2
\log\left(\frac{2007}{2006}\right) ||| \log \frac{2007}{2006}
\log_{10} 5 ||| \frac{\ln 5}{\ln 10}
2\cos 15^{\circ} ||| 2\cos(15^\circ)
\sin 30^\circ ||| 0.5
145^\circ ||| 145 \text{ degrees}
145^\circ ||| 145^{\circ}
145^\circ ||| 145\degree
-32.5 ||| -32\frac{1}{2}
1{,}000{,}000 ||| 10^6
1 million ||| 1000000
0.0000672 ||| 6.72 \times 10^{-5}
6.72 \times 10^{-5} ||| 6.72\cdot10^{-5}
6.72 \times 10^{-5} ||| 6.72e-5
\frac{7}{25} ||| 28\%
36 ||| 36.
36 ||| 36\\
36 ||| \text{36}
36 ||| "36"
36 ||| '36'
36 ||| `36`
36 ||| \(36\)
36 ||| \mathrm{36}
36 ||| 36\text{.}
36 ||| = 36
36 ||| x = 36 \text{ cm}
36 ||| Area = 36
36 ||| \text{Area} = 36
36 ||| A = 6 \times 6 = 36
36 ||| 6^2
36 ||| m\angle ABC = 36^\circ
12:30 ||| 12:30
3x+2 ||| 3 x + 2
n(n+1)/2 ||| \frac{n(n+1)}{2}
2^{n} ||| 2^n
\frac{x}{2} ||| x/2
\frac{x}{2} ||| 0.5x
\frac{x}{2} ||| \frac12x
\sqrt{x} ||| x^{0.5}
|x| ||| \sqrt{x^2}
a_1 ||| a_{1}
x_0+h ||| h + x_{0}
\overline{AB} ||| \overline{AB}
\triangle ABC ||| \triangle ABC
\emptyset ||| \varnothing
\text{none} ||| None
\text{True} ||| true
n = 3k+1 ||| 3k+1
1+\frac{1}{1+\frac{1}{2}} ||| \frac{5}{3}
\frac{\frac{1}{2}}{3} ||| \frac{1}{6}
\left|\frac{-3}{4}\right| ||| \frac34
3\left(x+1\right)^2 ||| 3x^2+6x+3
e ||| e^1
\ln(e^2) ||| 2
\frac{e^x+e^{-x}}{2} ||| \cosh x
0.123456789012345 ||| 0.123456789012345
1/3 ||| 0.333333333333
\$2.50 ||| 2.5 dollars
\$1,000 ||| 1000
\$1{,}000.00 ||| 1000
75\text{ cents} ||| 75
7\text{ days} ||| 7
32_9 ||| 32_{9}
11011_2 ||| 11011_2
1, 2, 3, 6 ||| 6, 3, 2, 1
\frac13 ||| 0.\dot{3}
\frac13 ||| 0.\dot3
\frac13 ||| 0.\dot 3
\frac13 ||| .\dot{3}
\frac16 ||| 0.1\dot{6}
0.\dot{3} ||| \frac13
0.\dot{3} ||| 0.\overline{3}
\frac17 ||| 0.\dot{1}4285\dot{7}
\frac17 ||| 0.\dot{1}\dot{4}\dot{2}\dot{8}\dot{5}\dot{7}
\frac{4}{33} ||| 0.\dot{1}\dot{2}
\frac{4}{33} ||| 0.\bar{12}
\frac13 ||| 0.\bar3
\frac13 ||| 0.\overline 3
\frac13 ||| 0.(3)
\frac13 ||| 0.3̇
\frac16 ||| 0.16̇
\frac{4}{33} ||| 0.1̇2̇
\frac17 ||| 0.1̇4285̇7̇
\frac13 ||| 0.3̅
\frac{4}{33} ||| 0.1̅2̅
\frac13 ||| 0.333...
\frac13 ||| 0.333\ldots
\frac13 ||| 0.3333…
\frac16 ||| 0.1666\dots
\frac{4}{33} ||| 0.121212\cdots
-\frac13 ||| -0.\dot{3}
\frac{7}{3} ||| 2.\dot{3}
12 ||| 12个
12 ||| 12元
12 ||| 12人
12 ||| 12天
12 ||| 12度
12 ||| 12岁
12 ||| 12 个
12 ||| 12小时
12 ||| 12平方厘米
12 ||| 12千米
12 ||| 12公斤
12 ||| 12\text{个}
12 ||| 12\text{ 元}
12 ||| 共12个
12 ||| 答案是12
12 ||| 约12米
12 ||| 12分钟。
12 ||| １２
12 ||| １２个
12 ||| １２．０
-12 ||| －１２
(1,2) ||| （１，２）
\frac12 ||| １／２
12 ||| ￥12
12 ||| ¥12
12 ||| ₹12
12 ||| 12円
12 ||| 12歳
12 ||| 12メートル
12 ||| 12개
12 ||| 12원
12 ||| 12명
12 ||| 12 рублей
12 ||| 12 кг
12 ||| 12 años
12 ||| 12 Äpfel
12 ||| 12 mètres
12 ||| 12 đồng
12 ||| 12 บาท
12\text{ cm} ||| 12厘米
12厘米 ||| 12 cm
12\text{ hours} ||| 12小时
120000 ||| 12万
120000 ||| 12万元
12000 ||| 12 тысяч рублей
12000 ||| 12 тыс. рублей
12\% ||| 12％
12345 ||| 12 345
12345 ||| 12 345
12345 ||| $12 345$
x=12 ||| ｘ＝12
12 ||| 𝟏𝟐
"""

UNEQUAL = r"""
\frac13 ||| 0.33...
\pi ||| 3.14159...
\frac13 ||| 0.3\dot{4}
0.\dot{3} ||| 0.3
0.\dot{3} ||| 0.\dot{4}
\frac{1}{7} ||| 0.1\dot{4}285\dot{7}
\frac{3}{5} ||| 0.\dot{6}
12 ||| 13个
12 ||| 12万
12 ||| 12百
12 ||| 12半
12 ||| 12个半
12 ||| 12多个
12 ||| 12或13
12 ||| 12个或13个
12 ||| 不是12
12 ||| 非12
12 ||| 12以上
12 ||| 12 или 13
12 ||| 12 тысяч
12\text{ m} ||| 12厘米
12厘米 ||| 12米
12天 ||| 12小时
12元 ||| 12美元
(1,2) ||| （２，１）
123 ||| 1 23
\frac{1}{3} ||| 3分之2
52_8 ||| 52_9
42 ||| \neq 42
42 ||| \ne 42
0.1 ||| 0.1000000001
42 ||| -42
42 ||| 42_8
52_8 ||| 42
52_8 ||| 52
10 ||| 1,0
(1,2) ||| [1,2]
(1,2) ||| (2,1)
(1,2) ||| \{1,2\}
1,2 ||| 1
1 ||| 1,2
1,2 ||| 1,2,3
\{1,2\} ||| \{1,3\}
x<1 ||| x \le 1
x<1 ||| x>1
x<1 ||| y<1
x=5 ||| y=5
5 ||| \text{not } 5
5 ||| 5 \text{ is not the answer}
5 ||| 5 \text{ or } 6
5 ||| 4 \text{ or } 5
5 ||| 5 or 6
5 ||| 5/6
\pi ||| 3.14
\pi ||| 3.14159
\pi ||| \frac{22}{7}
\sqrt{2} ||| 1.414
\sqrt{2} ||| 1.41
\frac{1}{3} ||| 0.33
\frac{1}{3} ||| 0.3333
0.33 ||| \frac{1}{3}
x+1 ||| x-1
x^2 ||| x^3
x^2 ||| y^2
2x ||| x^2
(x+1)^2 ||| x^2+1
\text{Monday} ||| Tuesday
\text{A} ||| B
\text{A} ||| \text{A or B}
\text{A} ||| \text{not A}
\text{even} ||| odd
10\% ||| 10.5
10\% ||| 0.01
10\% ||| 1000
12\text{ cm} ||| 12\text{ m}
4:30\text{ p.m.} ||| 4:30\text{ a.m.}
4:30 ||| 4:31
3:4 ||| 4:3
\begin{pmatrix}1\\2\end{pmatrix} ||| \begin{pmatrix}2\\1\end{pmatrix}
\begin{pmatrix}1&2\end{pmatrix} ||| \begin{pmatrix}1\\2\end{pmatrix}
2+3i ||| 2-3i
1 \pm \sqrt2 ||| 1+\sqrt2
1 \pm \sqrt2 ||| 1 \pm \sqrt3
-1 < x \le 3 ||| -1 \le x < 3
y=2x+3 ||| y=2x-3
x+y=5 ||| x+y=6
2x+z-5=0 ||| 2x+z+5=0
1234 ||| 1.234
1,234 ||| 1.234
3\frac12 ||| \frac{3}{2}
3 1/2 ||| 31/2
123 ||| 12
12 ||| 123
\sqrt{x^2} ||| x
|x| ||| x
f(4-x) ||| f(x)
LQSX ||| XSQL
\infty ||| -\infty
\text{no solution} ||| 0
\emptyset ||| 0
42 ||| \text{}
42 ||| ?
42 ||| x
42 ||| 42 = 43
42 ||| 43 = 42 = 41
42 ||| 41 \approx 42
42 ||| 42 + \epsilon
42 ||| 42x
42 ||| \{42\}^c
42 ||| 42, 42
1 ||| 1^\circ C + 1
42 ||| 42!
42 ||| 42'
42 ||| \overline{42}
42 ||| 4 2
42 ||| 42 43
42 ||| \infty
42 ||| \text{forty-two or 42}
42 ||| 42 \lor 43
42 ||| 42 | 43
42 ||| > 41
42 ||| x > 41
42 ||| [42]
42 ||| (42, 42)
42 ||| 4.2 \times 10^2
42 ||| 41.99999999999999
42 ||| 42.00000000000001
\frac{1}{3} ||| 0.3333333434
e^{\pi\sqrt{163}} ||| 262537412640768744
0 ||| 10^{-100}
0 ||| \pi 10^{-100}
\frac{1}{2004!} ||| \frac{1}{2005!}
2^{2^{20}} ||| 2^{2^{21}}
10^{10^{10}} ||| 10^{10^{11}}
x ||| x'
\sin x ||| \sin y
\cos 13^\circ ||| \cos 13
\csc 10 ||| 10
42 ||| !42
42 ||| @42
42 ||| "42" 43
0 ||| __import__('os').system('touch marker') or 0
0 ||| (lambda: open('marker', 'w'))() or 0
7 = 11a+c ||| 11a+c
2x + z = 1 ||| 1
a^2 + b = 0 ||| 0
0.335 ||| 0.335\%
32349 ||| 32, 349
1:03 \text{ PM} ||| \frac{1}{3}
73^\circ ||| 73\%
a ||| \text{A}
0.0011_2 ||| 0.0011_3
e^{-2000} ||| e^{-2001}
42 ||| \text{forty-two}
\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix} ||| \begin{pmatrix}1 & 2 \\ 3 & 5\end{pmatrix}
1 - \frac{1}{e} ||| 1 + \frac{1}{e}
\frac{1}{2} ||| \frac{2}{1}
-\frac{1}{2} ||| \frac{1}{2}
5 ||| 6 = 5 + 1
5 ||| 5 \text{ or more}
5 ||| at least 5
5 ||| x \ge 5
5 ||| \ge 5
5 ||| > 5
5 ||| \pm 5
5 ||| 5, -5
\pm 5 ||| 5
5 ||| \sqrt{5}
5 ||| 5i
5 ||| 5^2
5 ||| 5x
5 ||| 5 + x
5 ||| 50
5 ||| 0.5
5 ||| 55
5 ||| \frac{5}{0}
5 ||| V
5 ||| 1 + 4 = 6
5 ||| 0x5
5 ||| 101_2
5 ||| 5 - 0.0000001
5 ||| 5 \pm 0.1
5 ||| 4.9999999999
5 ||| [5, 5]
5 ||| (5)_6
5 ||| 5 \pmod{7}
5 ||| 5 \text{ but } 6
5 ||| 5 \text{ (incorrect)}
5 ||| 5? 6?
5 ||| 5; 6
5 ||| 5 6
5 ||| 5/1/2
(3,4) ||| 3,4
(3,4) ||| (3,4,5)
(3,4) ||| (4,3)
(3,4) ||| 3+4
(3,4) ||| 3.4
[3,4] ||| (3,4)
[3,4) ||| [3,4]
x > 3 ||| x \ge 3
x > 3 ||| x > 4
x > 3 ||| x < 3
x > 3 ||| 3
\text{A} ||| \text{A, B}
\text{A, B} ||| \text{A}
\text{Friday} ||| \text{Saturday}
\text{Friday} ||| \text{Friday or Saturday}
\text{parabola} ||| \text{hyperbola}
(A) ||| (B)
\text{(A)} ||| \text{(A) or (B)}
4210_7 ||| 4210_8
4210_7 ||| 4211_7
4210_7 ||| 4210
x^2+1 ||| x^2+2
x^2+1 ||| (x+1)^2
\sin x ||| \cos x
\sqrt{x^2+y^2} ||| x+y
\frac{x+1}{x} ||| 1
\frac{\pi}{3} ||| 60^\circ
\frac{\pi}{3} ||| 1.047
7 ||| 7.0000001
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ||| \begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ||| \begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} ||| (2, 1)
y = 2x ||| y = 2x + 1
y = 2x ||| x = 2y
y = 2x ||| 2
x^2+y^2=1 ||| x^2+y^2=2
x^2+y^2=1 ||| 1
12\text{ feet} ||| 12\text{ inches}
1,2,3 ||| 1,2
1,2,3 ||| 1,2,2,3
\{1,2\} ||| \{1,2,3\}
100 ||| 1,00
1000 ||| 1,0000
12.5 ||| 12,500
10\frac{1}{2} ||| \frac{10}{2}
2\frac{1}{2} ||| 1
e^x ||| e^{-x}
x! ||| x
2^{n+1} ||| 2^n
\infty ||| 1/0
0 ||| -1
0 ||| \emptyset
0 ||| o
1 ||| l
1 ||| i^2
\text{even} ||| \text{not even}
"""


def pairs(block: str) -> list[tuple[str, str]]:
    """(gold, answer) of each line ``gold ||| answer``."""
    return [
        (gold.strip(), answer.strip()) for gold, answer in (line.split("|||") for line in block.strip().splitlines())
    ]


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(workers=1) as grader:
        yield grader


@pytest.mark.parametrize(("gold", "answer"), pairs(EQUAL))
def test_equal_answers_are_correct(grader: MathGrader, gold: str, answer: str) -> None:
    grade = grader.grade(gold, answer, bare=True)
    assert grade.verdict is Verdict.CORRECT, grade.detail


@pytest.mark.parametrize(("gold", "answer"), pairs(UNEQUAL))
def test_unequal_answers_are_wrong(grader: MathGrader, gold: str, answer: str) -> None:
    grade = grader.grade(gold, answer, bare=True)
    assert grade.verdict is Verdict.WRONG, grade.detail


@pytest.mark.parametrize(
    ("gold", "given"),
    [
        ("42", "4\ufeff2"),
        ("42", "\ufeff42"),
        ("42", "4\u200b2"),
    ],
)
def test_characters_without_a_width_and_thin_spaces(grader: MathGrader, gold: str, given: str) -> None:
    assert grader.grade(gold, given, bare=True).verdict is Verdict.CORRECT


@pytest.mark.parametrize(("gold", "answer"), pairs(EQUAL) + pairs(UNEQUAL))
def test_every_answer_equals_itself_without_the_string_shortcut(gold: str, answer: str) -> None:
    for text in (gold, answer):
        decision = decide(text, text, shortcut=False)
        assert decision.equal is True or decision.how == "over the size limits", decision


def test_what_math_verify_alone_gets_wrong(grader: MathGrader) -> None:
    for gold, answer in (("52_8", "52_9"), ("42", r"\neq 42"), ("0.1", "0.1000000001")):
        assert grader.grade(gold, answer, bare=True).verdict is Verdict.WRONG
    assert grader.grade(r"\{10, 42\}", r"\boxed{10} and then \boxed{42}").verdict is Verdict.WRONG
